"""All bounds of bgpool: value, unit and source.

Every wait, queue, store and repetition is limited by one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# -- size of the segment -----------------------------------------------------------------------------------------

#: Entries in the timeline. A switchover has a dozen events, and a process sees a few switchovers between restarts.
TIMELINE_EVENTS: Final = 64

#: Log lines kept in the snapshot until a process relays them. A switchover writes fewer than ten.
NOTICES: Final = 16

#: Characters of one notice: enough for a readiness line with a dozen endpoints, and for a summary table.
NOTICE_CHARS: Final = 4000

#: Endpoints of both roles. Aurora allows 15 readers per cluster, plus custom endpoints.
ENDPOINTS: Final = 64

#: Addresses kept for one name. A reader endpoint resolves to one address at a time, a dual-stack name to a few.
ADDRESSES_PER_NAME: Final = 16

#: RFC 1035: a host name is at most 253 characters.
NAME_CHARS: Final = 253

# -- monitoring --------------------------------------------------------------------------------------------------

#: The default connect and statement timeout of a monitoring connection, in seconds.
#: Source: the AWS wrapper's default for its monitoring connections.
MONITOR_CONNECT_TIMEOUT_S: Final = 10
MONITOR_STATEMENT_TIMEOUT_S: Final = 10

#: The same during a switchover, in seconds. A connection that hangs then hangs on a host that went away, and TCP's own
#: retransmissions (1, 2, 4 s ...) would find it back late. libpq's minimum is 2.
SWITCHING_TIMEOUT_S: Final = 2

#: The number of queries to green per bg_interval_high_ms in IN_PROGRESS, and the shortest interval of two queries, in
#: ms. Green's answer releases the callers, so that half of the interval is lost on average for all of them. One host
#: queries as often as an application of five processes in which every process queries for itself.
EVIDENCE_QUESTIONS: Final = 5
EVIDENCE_INTERVAL_MS: Final = 10

#: The same if the query can wait at the server for the promotion (PostgreSQL, physical replicas). The answer then comes
#: within 2 ms of it, and the other queries only detect other changes.
AWAITED_QUESTIONS: Final = 2

#: The time without an answer after which a host counts as silent in a switchover, in seconds.
#: Source: measured answers take milliseconds, and there are ten polls per second.
SILENCE_S: Final = 0.5

#: The longest wait for a green with contradictory evidence of its promotion, in seconds: the metadata report it while
#: green answers that it is read-only, or green accepts writes while it still follows blue. Source: behaviour.md §3,
#: release by metadata.
GREEN_WAIT_S: Final = 2.0

#: The limit of one look-up of one name, in seconds. Look-ups run apart from the status queries and never delay a phase.
RESOLVE_TIMEOUT_S: Final = 5.0

#: The shortest interval of two look-ups of the same names, in seconds. The RDS zones have a TTL of 5 s, so that a tenth
#: of a second is already 50 times finer than the resolution of a cache.
RESOLVE_INTERVAL_S: Final = 0.1

#: The limit for following an alias before a process's first checkout, in seconds, after which the checkout continues
#: without the result; the limit of links; and the pause before a failed attempt is repeated, in seconds.
ALIAS_TIMEOUT_S: Final = 2.0
ALIAS_LINKS: Final = 8
ALIAS_RETRY_S: Final = 10.0

#: Concurrent look-ups, so that a stalled one does not delay the others.
RESOLVE_THREADS: Final = 8

#: With an interval below this, in seconds, names are looked up concurrently from the beginning, so that a stalled
#: look-up delays no other. With a longer interval one thread serves all names until one of them stalls.
RESOLVE_HURRY_S: Final = 0.5

#: The interval of attempts to connect to green under its new name, in seconds. A renewal takes seconds to minutes.
RENEWAL_INTERVAL_S: Final = 0.5

#: Switchovers whose records are kept in the run directory.
HISTORY_RECORDS: Final = 20

#: The largest history file that is read, in bytes: the maximum of records with the maximum of events fits.
HISTORY_BYTES: Final = 1_000_000

#: The interval at which the monitor samples the workers' rows in a switchover, in seconds: a little shorter than the
#: one at which workers write them (WATCH_INTERVAL_S), so that it misses few updates. And at other times: only often
#: enough to show the usual state before a switchover.
SAMPLE_INTERVAL_S: Final = 0.2
SAMPLE_IDLE_S: Final = 1.0

#: The time before and after a switchover for which samples are kept, in seconds: enough to see a steady state.
SAMPLE_BEFORE_S: Final = 10.0
SAMPLE_AFTER_S: Final = 5.0

#: Samples of one worker: a minute at full resolution. When there are more, every other one is dropped.
SAMPLES: Final = 300

#: The maximum of sampled workers. A picture of more would be unreadable; the others are counted.
SAMPLED_WORKERS: Final = 64

#: Switchovers whose samples are kept, and the largest sample file that is read, in bytes: 300 samples of 64 workers, of
#: fifteen numbers each, most of which are 0, need about half of it.
SAMPLED_SWITCHOVERS: Final = 5
SAMPLES_BYTES: Final = 2_000_000

#: The maximum age of a valid row of Aurora's topology, in seconds: a server that is gone leaves its row behind.
#: Source: AWS, "information_schema tables", and the queries of AWS's own drivers.
TOPOLOGY_STALE_S: Final = 300
#: The interval of the monitor's heartbeat, in seconds. A monitor counts as silent after HEARTBEAT_STALE_S, and another
#: may fence it off after HEARTBEAT_HUNG_S. Source: behaviour.md §5, replacement within 2 s, hang 5 s.
HEARTBEAT_S: Final = 0.2
HEARTBEAT_STALE_S: Final = 0.8
HEARTBEAT_HUNG_S: Final = 4.0

#: The time for which a monitor continues after the last process that uses its bg_id, in seconds. It is longer than the
#: pause between two workers of a server that recycles them.
LINGER_S: Final = 10.0

#: The interval at which a monitor checks that the processes it has seen still exist, as a share of LINGER_S. While
#: there are none it checks at every heartbeat. LINGER_S counts from the check that finds no process.
PRESENCE_SHARE: Final = 0.2

#: The time for which a process may hold the right to start a monitor before another one takes it, in seconds: the start
#: of an interpreter on a machine where two hundred workers start at the same time.
MONITOR_START_S: Final = 10.0

#: The time that a started monitor has until it watches, in seconds; then it is killed. It may have to import a whole
#: application to get the password callable, and to wait until a hung monitor is fenced off.
MONITOR_READY_S: Final = 30.0

#: The limit of a checkout in a monitor's process, in seconds, if the module of the password callable makes a pool.
MONITOR_CHECKOUT_S: Final = 1.0

#: The maximum of monitors in one process. The next one gets a new process, which accepts more in turn. Each has about
#: ten threads and as many descriptors.
HOST_MONITORS: Final = 32

#: The time in which a process of monitors must accept a request for another one, in seconds. Then another process is
#: started. A process that hangs keeps its monitors' segments for HEARTBEAT_HUNG_S in any case.
HOST_ANSWER_S: Final = 2.0

#: The maximum of requests that wait for that at a time.
HOST_QUEUE: Final = 128

#: The time for which a process of monitors stays after its last one has exited, in seconds. A monitor that exits to be
#: restarted is followed by the next one immediately.
HOST_LINGER_S: Final = 1.0

#: The pause of such a process if it has no descriptors left to accept another monitor, in seconds.
HOST_PAUSE_S: Final = 0.1

#: The interpreter's switch interval in such a process, in seconds. With Python's default of 5 ms, one busy thread
#: delayed the phases of sixteen deployments by up to 0.46 s, with this value by 0.13 to 0.15 s, of which 0.1 s is the
#: query interval. It costs no measurable CPU.
SWITCH_S: Final = 0.001

#: The stack size of each thread of such a process, in bytes, as Python uses on Alpine. If the kernel gives huge pages
#: to every large mapping (transparent_hugepage=always), larger stacks take 2 MB each at the first touch.
STACK_BYTES: Final = 1_048_576

#: The time for which a monitor that exits waits for its threads, in seconds. Most end within a quarter of it. A thread
#: that is connecting, or that a resolver blocks, ends with that call, and its connection is closed.
PARTS_END_S: Final = 1.0

#: A monitor that falls silent within this time after its start counts as a failed start, in seconds.
MONITOR_SHORT_LIFE_S: Final = 2.0

#: The pause after a failed attempt to start a monitor, in seconds, doubling from the first value to the second. It is
#: shorter than MONITOR_START_S, because a lock is held during the pause.
RESTART_PAUSE_S: Final = 0.5
RESTART_PAUSE_MAX_S: Final = 8.0

#: The pause before an operation that the run directory does not allow (a row, a monitor) is retried, in seconds.
RESTART_INTERVAL_S: Final = 5.0

#: The time without any view of a deployment after which a monitor exits in favor of another pool's parameters, in
#: seconds. It is long enough for every pool of a starting process to be known, and longer than MONITOR_SHORT_LIFE_S
#: plus HEARTBEAT_STALE_S, so that the exit does not count as a failed start.
BLIND_S: Final = 3.0

#: The same if the server refuses the login, which may be due to a lack of free connections; and the time without any
#: answer after which parameters count as useless. It is longer than the refusals of any failover.
LOCKED_OUT_S: Final = 30.0

#: The time before parameters that showed no deployment are retried, in seconds. A later GRANT, extension or deployment
#: is seen after it. A deployment may be switched over minutes after it was created.
SIGHT_LIFE_S: Final[Mapping[str, float]] = {"SILENT": 60.0, "REFUSED": 600.0, "MISSING": 600.0, "EMPTY": 600.0}

#: The maximum of recorded parameters; and of consecutive monitors with parameters of one refused name, because their
#: passwords, which are not recorded, may differ.
OBSERVATIONS: Final = 16
SAME_NAME_TRIES: Final = 8

#: The interval at which such a monitor checks whether a process has better parameters, in seconds.
OFFERS_INTERVAL_S: Final = 1.0

#: The time for which a process leaves the start of a monitor to one with better parameters, in seconds after the last
#: monitor fell silent. With the start itself that is less than the 2 s within which a killed monitor is replaced.
GIVE_WAY_S: Final = 0.6

#: The longest sleep of the thread that waits for a monitor's doorbell, in seconds; a nudge or an order wakes it. It is
#: shorter than PARTS_END_S, within which the threads of a monitor that exits must end.
BELL_SLEEP_S: Final = 0.8

#: The shortest interval of two queries that are caused by nudges, in seconds. An answer takes milliseconds.
NUDGE_INTERVAL_S: Final = 0.02

#: The longest hold on a mere suspicion that a switchover has begun, in seconds: longer than the replacement of a
#: monitor that is killed at that time. If blue answers, its next answer ends the hold within milliseconds.
SUSPICION_S: Final = 3.0

#: The limit of a call of a password callable, in seconds. Source: the usual connect timeout of a driver. A token is
#: made in a millisecond, and a request to a secrets service takes less than this.
PASSWORD_TIMEOUT_S: Final = 10.0

#: The minimum age of the AWS client that signs IAM tokens before a refused login causes a new one, in seconds. That
#: takes a quarter of a second, and a name that green does not have yet is refused twice a second.
AWS_CLIENT_MIN_AGE_S: Final = 60.0

# -- dead networks -----------------------------------------------------------------------------------------------

#: TCP keepalive: the idle time before the first probe and the interval of probes, in seconds, and the number of probes
#: without an answer. During a long query the connection is idle, too, and the server answers the probes.
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3

#: The time for which sent data may stay unacknowledged before TCP closes the connection, in ms: as long as keepalive
#: takes with the three values above. Without it Linux retransmits for 15 minutes (net.ipv4.tcp_retries2), and sends no
#: keepalive probes during that time. Source: behaviour.md, a dead network is noticed within 30 s.
TCP_USER_TIMEOUT_MS: Final = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_COUNT)

#: The longest time for which an operator's order is in force, in seconds. Every reader ends it by its own clock, so
#: that it expires even if the monitor dies or the operator forgets it.
ORDER_S: Final = 3600

#: The time for which `bgpool hold` and `bgpool release` wait for the monitor to accept the order, in seconds, and the
#: maximum age of an order that it accepts: longer than the replacement of a monitor that is killed or hangs at that
#: time.
ORDER_WAIT_S: Final = 8.0

# -- MySQL -------------------------------------------------------------------------------------------------------

#: The default read timeout of an application's connection, in seconds. It need not detect a host that went away: TCP
#: does that within 25 s, and a switchover cuts the socket. So it may be longer than the longest query of any
#: application.
MYSQL_READ_TIMEOUT_S: Final = 3600

#: The default write timeout, in seconds: a server that has not read for this long will not read any more.
MYSQL_WRITE_TIMEOUT_S: Final = 60

# -- pools' options ----------------------------------------------------------------------------------------------

#: The largest value of a pool option that is a time, in seconds: a year, the maximum of PyMySQL. threading.TIMEOUT_MAX,
#: above which a wait raises OverflowError, is 292 years on 64-bit Linux.
OPTION_SECONDS_MAX: Final = 31_536_000

# -- time limits of AWS and of application servers ---------------------------------------------------------------

#: AWS's default limit of a switchover, after which it rolls back, and the smallest value that can be set, in seconds.
#: Source: AWS, SwitchoverBlueGreenDeployment, SwitchoverTimeout.
AWS_SWITCHOVER_TIMEOUT_S: Final = 300
AWS_SHORTEST_SWITCHOVER_S: Final = 30

#: The time that a request needs in addition to the hold of its checkout, in seconds: a server's time limit must allow
#: it.
REQUEST_MARGIN_S: Final = 5.0

# -- workers -----------------------------------------------------------------------------------------------------

#: The interval at which a worker's watcher checks for a monitor while there is none, in seconds. With a monitor, it
#: checks when the monitor could have been silent for HEARTBEAT_STALE_S, and when a connection must be cut. In a
#: switchover it checks the state of its pools at this interval, while that state changes.
WATCH_INTERVAL_S: Final = 0.25

#: The longest interval of these checks, in seconds; the interval grows while the state does not change. A check costs
#: several times as much as waking up.
LOOK_INTERVAL_MAX_S: Final = 4.0

#: The CPU time of a process's other threads, in seconds, from which its watcher, when awake for another reason, treats
#: the process as active and checks it. A checkout with a statement uses a fifth of that.
BUSY_CPU_S: Final = 0.001

#: The time after a publication in which rows and logs are postponed, in seconds. Callers are released at that time, and
#: every process of the host needs the cores for them.
NEWS_FIRST_S: Final = 0.05

#: The limit of a watcher's step, in seconds. If a step takes longer, its thread is abandoned with it, and another
#: thread takes over the process's other deployments. Steps take less than a millisecond.
STALL_S: Final = 0.5

#: The age of a worker's row, in seconds, from which its process counts as not keeping up. A process writes its row in
#: every LOOK_INTERVAL_MAX_S, unless it is stopped or its server runs threads only during requests.
ROW_STALE_S: Final = 6.0

#: Tasks that resume in one iteration of their event loop when a hold ends; other tasks run in between.
WAKE_BATCH: Final = 50

#: The maximum of concurrent blocking calls, of a password callable or a resolver, in threads of one event loop.
LOOP_CALLS: Final = 4

#: The time for which a cancelled task waits for the server to accept the cancel request of its statement, in seconds.
#: Then its connection is closed. A healthy server accepts it within milliseconds.
CANCEL_TIMEOUT_S: Final = 1.0

#: The interval at which a waiter polls the mapped word if the kernel cannot wake it (no futex, gevent), in seconds.
POLL_INTERVAL_S: Final = 0.01

#: The longest sleep of a waiter in the kernel before it checks the word again, in seconds. A monitor in a sandbox that
#: refuses futex changes the word without waking any waiter. Watchers wake more often (HEARTBEAT_STALE_S). A watcher
#: that finds a change by its own clock wakes the others, and also callers whose turn at a release was lost (LINE_S). So
#: this is needed only in a process without a watcher.
FUTEX_SLEEP_S: Final = 4.0

#: The shortest connect timeout that libpq and psycopg support, in seconds.
SHORTEST_CONNECT_S: Final = 2

#: The pause between two attempts to connect during a switchover, in seconds. A driver's own backoff starts at a second,
#: which would be the longest part of the downtime.
RECONNECT_INTERVAL_S: Final = 0.02

#: Connections that a host opens concurrently after a switchover, per core; each pool at least one. A login is work for
#: a core, about half of it the client's. With more at a time, the first connection of every process completes only when
#: all are done, while a pool's first connection could already serve its callers in turn. Measured with 4 processes of 2
#: threads on 2 cores: with 3 per core the last caller waited for 0.09 s, with 2 for 0.07 s.
CONNECTS_PER_CORE: Final = 2

#: At a release the processes of a host log in one after the other. As many as CONNECTS_PER_CORE start at first, each of
#: which wakes the next one when it is done. In addition one more per core starts every LINE_PACE_S seconds, because
#: some logins may take long. After LINE_S seconds all others start. Computed for 64 processes on 2 cores: if a login is
#: pure work (5.5 ms), half of the processes are connected in 105 ms instead of 176. If it is 3 ms of work and 5 ms of
#: waiting, the last one is connected in 110 ms instead of 101. On a host that is busy with other work, a few processes
#: at a time get a smaller share of the cores than all at once, hence the limit.
LINE_PACE_S: Final = 0.016
LINE_S: Final = 0.12

#: The time for which a watcher postpones its own work in favor of released callers of its process, in seconds: until
#: the last of many processes has its connection.
CALLERS_FIRST_S: Final = 0.3

#: The maximum of attempts to read a slot that is rewritten during the read. A writer publishes a few times a second and
#: a read takes microseconds, so that a second attempt is already rare.
READ_ATTEMPTS: Final = 32

#: The longest pause between two attempts to connect, in seconds, so that a refused password is not tried 50 times a
#: second.
RECONNECT_INTERVAL_MAX_S: Final = 0.25

#: The time for which a log line equal to the last one is suppressed, in seconds.
LOG_REPEAT_S: Final = 60.0

#: The maximum of attempts of one unit of work. A switchover cuts it once or twice.
UNIT_ATTEMPTS: Final = 20

#: The pause before the next attempt of a unit of work, in seconds, doubling from the first value to the second.
UNIT_PAUSE_S: Final = 0.02
UNIT_PAUSE_MAX_S: Final = 0.5

#: The time for which a unit of work is retried after cuts without a known switchover, in seconds. A monitor that was
#: stopped before it could publish one is replaced within 5 s, and the next monitor reads the status immediately.
UNIT_UNEXPLAINED_S: Final = 6.0

#: Characters of a receipt's id: enough for a task's id, or a topic, partition and offset. Source: bgpool's own DDL.
RECEIPT_ID_CHARS: Final = 200

#: The time for which units of work run without receipts after the table was found unusable, in seconds.
RECEIPTS_RETRY_S: Final = 60.0

#: Units of work delete old receipts: the maximum of rows per deletion, and the number of receipts or seconds after
#: which a process deletes again; sooner if the last deletion reached the maximum. That is rare enough to leave the 99th
#: percentile of units unchanged, and often enough that a process deletes as many as it writes. Measured in
#: docs/units-of-work.md.
RECEIPTS_DELETED_AT_ONCE: Final = 500
RECEIPTS_DELETION_EVERY: Final = 500
RECEIPTS_DELETION_S: Final = 60.0
RECEIPTS_BACKLOG_EVERY: Final = 300
RECEIPTS_BACKLOG_S: Final = 5.0

#: The lock timeout and the statement timeout of such a deletion, in ms. On MySQL the lock timeout is one second.
RECEIPTS_LOCK_MS: Final = 50
RECEIPTS_STATEMENT_MS: Final = 500

#: The time for which an old blue that does not answer is queried for the outcome of a COMMIT, in seconds. It is closed
#: during a switchover, and accepts clients again 0.3 to 1.5 s after the release. Source: docs/major-upgrade.md.
OLD_BLUE_S: Final = 15.0

#: The time for which a pool keeps its new connections although their server refuses a write, in seconds, after it
#: replaced all connections for that reason. It doubles with each replacement, and starts again after the longest time
#: without a refused write. A name that moves in a failover is followed within twice the time that it takes to move, and
#: a server that stays read-only costs a pool two replacements a minute.
DISTRUST_INTERVAL_S: Final = 0.1
DISTRUST_INTERVAL_MAX_S: Final = 30.0

#: Before a switchover every process tests its own login on green: the interval after a success and after a refusal, in
#: seconds, plus or minus half of it. Passwords and accounts change in hours; an operator who has corrected an account
#: waits for the second interval. And the initial rate of a host, in logins per second.
LOGIN_TRIAL_INTERVAL_S: Final = 600.0
LOGIN_TRIAL_RETRY_S: Final = 60.0
LOGIN_TRIALS_PER_S: Final = 10.0
#: The same after a handshake that failed because of TLS. MySQL counts these per client host, and blocks the host after
#: 100 without a successful login in between (max_connect_errors).
LOGIN_TRIAL_TLS_S: Final = 3600.0
#: The interval at which the other processes of a host check whether a refused process can log in again, in seconds.
#: They wait for it, because a server may lock an account after several wrong passwords.
LOGIN_TRIAL_WAIT_S: Final = 5.0

# -- the pool under a MySQL pool ---------------------------------------------------------------------------------

#: The size limit of a MySQL pool without a configured one. Source: the largest max_connections of MySQL and MariaDB.
MYSQL_CONNECTIONS_MAX: Final = 100_000

#: The idle time from which a connection is checked before it is handed out, in seconds. Source: HikariCP.
CHECK_AFTER_IDLE_S: Final = 0.5

#: The limit of such a check, in seconds. A server answers in a millisecond, and another connection can be opened.
CHECK_TIMEOUT_S: Final = 5.0

#: The interval of pool maintenance, in seconds: connections that are too old or unneeded are closed, missing ones are
#: opened. An idle process wakes no more often than that.
KEEP_INTERVAL_S: Final = 10.0

#: The share of its lifetime by which a connection may end early, so that not all are replaced at the same time.
LIFETIME_JITTER: Final = 0.1

#: The maximum of TLS contexts that a process keeps; one for each set of certificates in its DSNs.
SSL_CONTEXTS: Final = 16

# -- fleet -------------------------------------------------------------------------------------------------------

#: The interval of a leader's heartbeat, in seconds: in quiet times and in a switchover.
FLEET_HEARTBEAT_S: Final = 0.5
FLEET_HEARTBEAT_SWITCHING_S: Final = 0.1

#: The time without a valid message after which a host queries the database itself, in seconds: in quiet times and in a
#: switchover. Source: behaviour.md §11.
FLEET_SILENCE_S: Final = 1.5
FLEET_SILENCE_SWITCHING_S: Final = 0.4

#: The interval at which a leader repeats its full message, in seconds: a host that joins needs one.
FLEET_WHOLE_S: Final = 5.0

#: The query budget of all hosts together, per server and second, while they query it themselves: each host queries once
#: in (hosts / budget) seconds then. Source: behaviour.md §11.
FLEET_BUDGET_PER_S: Final = 200

#: The maximum age of a valid message, and the maximum difference of two hosts' clocks, in seconds.
FLEET_FRESH_S: Final = 2.0
FLEET_CLOCK_ERROR_S: Final = 1.0

#: The maximum by which a term may be ahead of the clock, in seconds. The terms of a new stream start at the clock's
#: seconds.
FLEET_TERM_AHEAD_S: Final = 86_400

#: The pause between two claims of a host that were refused or not answered, in seconds, plus or minus half of it.
FLEET_CLAIM_PAUSE_S: Final = 0.5

#: The time for which a host does not claim if its clock differs from most others', and the longest pause of a host
#: whose claims repeatedly lose to hosts that it cannot authenticate, in seconds.
FLEET_BARRED_S: Final = 60.0

#: The time over which the hosts spread their claims after a leader resigns, in seconds: in quiet times and in a
#: switchover.
FLEET_SUCCESSION_S: Final = 0.3
FLEET_SUCCESSION_SWITCHING_S: Final = 0.1

#: The time for which a host that has queried for itself waits for a leader before it becomes direct, in seconds.
FLEET_VACANT_S: Final = 1.0

#: The pause of a host after the bus has failed, in seconds, doubling from the first value to the second.
FLEET_PAUSE_S: Final = 0.1
FLEET_PAUSE_MAX_S: Final = 1.0

#: The interval at which a key callable is called again, in seconds: a changed key reaches a monitor within this time.
FLEET_KEYS_LIFE_S: Final = 60.0

#: The interval at which a monitor checks for changes to report; the shortest interval of two nudges that it forwards
#: (FLEET_NUDGE_S); and its wait for its last message to be written (FLEET_LEAVE_S); in seconds.
FLEET_LOOK_S: Final = 1.0
#: The time by which the hosts stagger their reports of a change that concerns all, in seconds per host, at most
#: FLEET_LOOK_S in total.
FLEET_TURN_TO_REPORT_S: Final = 0.01
FLEET_NUDGE_S: Final = 0.5
FLEET_LEAVE_S: Final = 0.5

#: The shortest interval at which snapshots show a changed number of hosts, in seconds: each one wakes every worker.
FLEET_SHOW_S: Final = 5.0

#: While a server does not answer the leader, the other hosts take turns to query it: the interval of these queries, in
#: seconds. And the time for which a host without an answer leaves the leadership to hosts with one, in seconds.
FLEET_TURN_S: Final = 0.2
FLEET_UNANSWERED_S: Final = 0.3

#: The blocking time of one read of the bus, in quiet times and in a switchover, and the client's timeout for a silent
#: server, in seconds. A server returns up to a tenth of a second late.
FLEET_BLOCK_S: Final = 0.4
FLEET_BLOCK_SWITCHING_S: Final = 0.1
FLEET_TIMEOUT_S: Final = 1.0

#: The approximate number of entries kept in the leaders' stream; the maximum per read; and the largest entry that is
#: read, in bytes: the readings of a deployment with the maximum of endpoints.
FLEET_ENTRIES: Final = 64
FLEET_ENTRIES_READ: Final = 128
FLEET_ENTRY_BYTES: Final = 65_536
#: The largest answer of the bus that is read, in bytes, and its time limit, in seconds: two streams full of the largest
#: entries. Without the limit a client that may write there could make a monitor read gigabytes.
FLEET_ANSWER_BYTES: Final = 16_777_216
FLEET_ANSWER_S: Final = 5.0

#: The interval of a host's reports, in seconds, plus or minus a fifth, and the time without a report after which it is
#: no longer counted.
FLEET_REPORT_S: Final = 5.0
FLEET_REPORT_LIFE_S: Final = 16.0
#: The time for which `bgpool fleet status` shows a host that stopped reporting without leaving, in seconds: long enough
#: for the operator to notice, and short enough not to list all pods of the last roll-out.
FLEET_GONE_S: Final = 180.0
#: The approximate number of hosts whose reports are kept, for as long as a report counts.
FLEET_HOSTS: Final = 2_000
#: The time without a failure after which the log reports that the bus works again, in seconds. A host that may read but
#: not write notices the failure with each report.
FLEET_WORKS_S: Final = 15.0
#: Characters of one text in a message or report: a server's error, an obstacle to a switchover.
FLEET_TEXT_CHARS: Final = 500
#: The maximum of obstacles in a host's report; its own `bgpool status` shows all of them in more detail.
FLEET_MISSING: Final = 4
#: The minimum length of a key in bytes, and the maximum of keys at a time: a key change needs two, and a second change
#: may begin before the first is complete.
FLEET_KEY_BYTES: Final = 32
FLEET_KEYS: Final = 4
