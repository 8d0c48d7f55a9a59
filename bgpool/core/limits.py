"""Every bound of bgpool: value, unit, and where the number comes from.

Anything that waits, queues, stores or repeats ends at one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# -- what the segment may hold -----------------------------------------------------------------------------------

#: A switchover has a dozen events and a process sees a few switchovers between restarts.
TIMELINE_EVENTS: Final = 64

#: Log lines kept in the snapshot for the process that relays them; a switchover writes fewer than ten.
NOTICES: Final = 16

#: Characters of one notice: a readiness line with a map of a dozen endpoints fits, and so does a summary table.
NOTICE_CHARS: Final = 4000

#: Endpoints of both roles. Aurora allows 15 readers a cluster, custom endpoints come on top.
ENDPOINTS: Final = 64

#: Addresses kept for one name; a reader endpoint resolves to one address at a time, a dual-stack name to a few.
ADDRESSES_PER_NAME: Final = 16

#: RFC 1035: a host name is at most 253 characters.
NAME_CHARS: Final = 253

# -- monitoring --------------------------------------------------------------------------------------------------

#: The connect and statement timeout of a monitoring connection unless the user says otherwise, in seconds.
#: Source: the AWS wrapper's default for its monitoring connections.
MONITOR_CONNECT_TIMEOUT_S: Final = 10
MONITOR_STATEMENT_TIMEOUT_S: Final = 10

#: The same while a switchover is under way, in seconds: what hangs then hangs on a host that went away, and TCP's
#: own retransmissions (1, 2, 4 s ...) would find it back late. libpq takes no less than 2.
SWITCHING_TIMEOUT_S: Final = 2

#: How many times in bg_interval_high_ms green is asked in IN_PROGRESS, and the shortest time between two questions, in
#: ms: its answer lets everybody go on, so that half the time between two is lost by all. One host asks as often as an
#: application of five processes would whose every process asks for itself.
EVIDENCE_QUESTIONS: Final = 5
EVIDENCE_INTERVAL_MS: Final = 10

#: The same where a server lets a question wait until it is promoted (PostgreSQL, physical replicas): the answer comes
#: within 2 ms of it, and what is asked in between is only for what else may happen.
AWAITED_QUESTIONS: Final = 2

#: How long a question may be unanswered in a switchover before the host counts as not answering, in seconds.
#: Source: measured answers take milliseconds, and the polls come ten times a second.
SILENCE_S: Final = 0.5

#: How long callers wait for green although something tells that it was promoted, in seconds: the metadata, while green
#: itself answers that it takes no writes; its taking some, while it still follows blue. Source: behaviour.md §3,
#: release by metadata.
GREEN_WAIT_S: Final = 2.0

#: One look-up of one name, in seconds. The resolver runs apart from the status queries and never delays a phase.
RESOLVE_TIMEOUT_S: Final = 5.0

#: Shortest time between two look-ups of the same names, in seconds. The RDS zones have a TTL of 5 s, so a
#: tenth of a second is already 50 times finer than what a cache lets through.
RESOLVE_INTERVAL_S: Final = 0.1

#: How long an alias is followed before a process's first checkout goes on without, in seconds, and over how many
#: links; where the chain could not be read, the pause before it is tried again.
ALIAS_TIMEOUT_S: Final = 2.0
ALIAS_LINKS: Final = 8
ALIAS_RETRY_S: Final = 10.0

#: Names looked up at a time; a stalled one must not keep the others waiting.
RESOLVE_THREADS: Final = 8

#: Names that are to be looked up more often than so many seconds are looked up side by side from the beginning: what
#: stalls then delays no other. With more time one thread does for all of them until one stalls.
RESOLVE_HURRY_S: Final = 0.5

#: Between two attempts to connect to green under its new name, in seconds. A renewal takes seconds to minutes.
RENEWAL_INTERVAL_S: Final = 0.5

#: Switchovers of which a record is kept in the run directory.
HISTORY_RECORDS: Final = 20

#: The largest history file that is read, in bytes: as many records of as many events as there may be, and room.
HISTORY_BYTES: Final = 1_000_000

#: How often the monitor looks at the rows of the workers through a switchover, in seconds: a little oftener than these
#: write them (WATCH_INTERVAL_S), so that it misses few updates. And while none is under way: only enough to tell what
#: was usual before.
SAMPLE_INTERVAL_S: Final = 0.2
SAMPLE_IDLE_S: Final = 1.0

#: What is kept of the time before a switchover and after it, in seconds: enough to see that it was calm.
SAMPLE_BEFORE_S: Final = 10.0
SAMPLE_AFTER_S: Final = 5.0

#: Samples of one worker: a minute at full resolution, and half as many each time that they have become too many.
SAMPLES: Final = 300

#: Workers that are sampled. A picture of more could not be read; those left out are counted.
SAMPLED_WORKERS: Final = 64

#: Switchovers of which samples are kept, and the largest file of them that is read, in bytes: 64 workers' 300 samples
#: of fifteen numbers, most of which are 0, come to about half of it.
SAMPLED_SWITCHOVERS: Final = 5
SAMPLES_BYTES: Final = 2_000_000

#: How old a row of Aurora's topology may be that counts, in seconds: a server that is gone leaves its row behind.
#: Source: AWS, "information_schema tables", and what AWS's own drivers ask for.
TOPOLOGY_STALE_S: Final = 300
#: The monitor's heartbeat, in seconds; readers call a monitor silent after HEARTBEAT_STALE_S, and another may
#: fence it off after HEARTBEAT_HUNG_S. Source: behaviour.md §5, replacement within 2 s, hang 5 s.
HEARTBEAT_S: Final = 0.2
HEARTBEAT_STALE_S: Final = 0.8
HEARTBEAT_HUNG_S: Final = 4.0

#: How long a monitor goes on when no process on the host uses its bg_id, in seconds. Longer than the pause
#: between two workers of a server that recycles them.
LINGER_S: Final = 10.0

#: How often a monitor looks whether processes are still there that it has seen, as a share of the time that it goes on
#: without any; while it sees none, at every sign of life. That time counts from the look that finds nobody.
PRESENCE_SHARE: Final = 0.2

#: How long a process may hold the right to start a monitor before another one takes it, in seconds: an
#: interpreter's start on a machine where two hundred workers start at once.
MONITOR_START_S: Final = 10.0

#: How long a monitor that was started may take until it watches, in seconds; then it is killed. It may have to import
#: a whole application for the sake of the password callable, and to wait until a hung one is fenced off.
MONITOR_READY_S: Final = 30.0

#: How long a checkout waits in a monitor's process, in seconds, where the module of the password callable makes a pool.
MONITOR_CHECKOUT_S: Final = 1.0

#: Monitors that one process runs at most; the next one gets a process of its own, which takes others in turn. Each has
#: about ten threads and as many descriptors.
HOST_MONITORS: Final = 32

#: How long a process of monitors, asked for another one, may take to say that it takes it, in seconds; another process
#: is started then. One that hangs keeps its monitors' segments for HEARTBEAT_HUNG_S anyway.
HOST_ANSWER_S: Final = 2.0

#: How many may wait for that at a time.
HOST_QUEUE: Final = 128

#: How long a process of monitors stays after its last one has left, in seconds: the next may come at once, where one
#: has left to begin anew.
HOST_LINGER_S: Final = 1.0

#: How long such a process pauses where it has no descriptors left to take another, in seconds.
HOST_PAUSE_S: Final = 0.1

#: How long a thread of such a process may go on computing while another one has work, in seconds. With Python's own
#: 5 ms one thread that computes made phases of sixteen deployments up to 0.46 s late, with this 0.13 to 0.15 s, where
#: 0.1 s is the interval of the questions. It costs no CPU that could be measured.
SWITCH_S: Final = 0.001

#: The stack of each thread of such a process, in bytes: what Python has on Alpine. Where the kernel gives huge pages to
#: whoever has room for one (transparent_hugepage=always), larger stacks take 2 MB each at the first touch.
STACK_BYTES: Final = 1_048_576

#: How long a monitor that leaves waits for its threads, in seconds. Most are gone within a quarter of it; one that is
#: connecting, or that a resolver holds, ends with that, and what it brings home is closed.
PARTS_END_S: Final = 1.0

#: A monitor that falls silent within so many seconds of its start counts as one that could not be started.
MONITOR_SHORT_LIFE_S: Final = 2.0

#: Pause after an attempt to start a monitor that came to nothing, in seconds: doubled from the first to the second.
#: Less than MONITOR_START_S, because a lock is held meanwhile.
RESTART_PAUSE_S: Final = 0.5
RESTART_PAUSE_MAX_S: Final = 8.0

#: Pause before what the run directory does not allow (a row of one's own, a monitor) is tried again, in seconds.
RESTART_INTERVAL_S: Final = 5.0

#: How long a monitor's parameters may show it nothing of a deployment, in seconds, before it leaves for those of
#: another pool: long enough for every pool of a starting process to be known, and more than MONITOR_SHORT_LIFE_S and
#: HEARTBEAT_STALE_S together, so that leaving does not count as a failed start.
BLIND_S: Final = 3.0

#: The same where the server refuses the login, which may be for want of free connections; and how long no server may
#: answer before the parameters count as leading nowhere. Longer than any failover's refusals.
LOCKED_OUT_S: Final = 30.0

#: How long nobody tries parameters again that have shown a monitor nothing, in seconds: a GRANT, an extension or a
#: deployment that comes later is seen by then. A deployment may be switched over minutes after it was created.
SIGHT_LIFE_S: Final[Mapping[str, float]] = {"SILENT": 60.0, "REFUSED": 600.0, "MISSING": 600.0, "EMPTY": 600.0}

#: Parameters whose sight is remembered; and how many monitors in a row try parameters of one name that was refused,
#: because passwords, which are not remembered, may differ.
OBSERVATIONS: Final = 16
SAME_NAME_TRIES: Final = 8

#: How often such a monitor looks whether anybody has better parameters, in seconds.
OFFERS_INTERVAL_S: Final = 1.0

#: How long a process leaves the start of a monitor to one with better parameters, in seconds after the monitor before
#: fell silent. With the start itself that is less than the 2 s in which a killed monitor is replaced.
GIVE_WAY_S: Final = 0.6

#: How long a monitor's bell sleeps before it looks around, in seconds; whoever rings it wakes it. Less than
#: PARTS_END_S, within which a monitor that leaves expects its threads to end.
BELL_SLEEP_S: Final = 0.8

#: Shortest time between two questions that nudges are the reason of, in seconds. An answer takes milliseconds.
NUDGE_INTERVAL_S: Final = 0.02

#: How long callers are held on the suspicion alone that a switchover has begun, in seconds: longer than a monitor
#: that is killed just then takes to be replaced. Blue's next answer ends it in milliseconds, if it is there to answer.
SUSPICION_S: Final = 3.0

#: How long a password callable may take, in seconds. Source: as long as a driver may take to connect; a token is
#: made in a millisecond, and what asks a server for a secret waits for less.
PASSWORD_TIMEOUT_S: Final = 10.0

#: How old what signs tokens of IAM must be before a refused login has it made again, in seconds: that takes a quarter
#: of a second, and a name that green does not go by yet is refused twice a second.
AWS_CLIENT_MIN_AGE_S: Final = 60.0

# -- dead networks -----------------------------------------------------------------------------------------------

#: When TCP asks a silent peer whether it is there, in seconds: after how much silence, how often from then on, and how
#: many times without an answer. A long query is silent too, and its server answers the question.
KEEPALIVE_IDLE_S: Final = 10
KEEPALIVE_INTERVAL_S: Final = 5
KEEPALIVE_COUNT: Final = 3

#: How long data that was sent may stay unacknowledged before TCP gives the connection up, in ms: as long as the three
#: numbers above take together. Without it Linux retransmits for 15 minutes (net.ipv4.tcp_retries2), and keepalive does
#: not ask while it does. Source: behaviour.md, a dead network is noticed within 30 s.
TCP_USER_TIMEOUT_MS: Final = 1000 * (KEEPALIVE_IDLE_S + KEEPALIVE_INTERVAL_S * KEEPALIVE_COUNT)

#: The longest time for which an operator's order stands, in seconds. Every reader ends it by its own clock: a monitor
#: that dies, or an operator who forgets it, leaves nothing behind.
ORDER_S: Final = 3600

#: How long `bgpool hold` and `bgpool release` wait for the monitor to take the order, in seconds, and how old an order
#: may be that it takes: longer than a monitor that is killed or hangs just then takes to be replaced.
ORDER_WAIT_S: Final = 8.0

# -- MySQL -------------------------------------------------------------------------------------------------------

#: The end of every wait for an answer on an application's connection, in seconds, unless the user says otherwise. Not
#: what finds a host that went away: TCP does that in 25 s, and a switchover cuts at the socket. So it may be longer
#: than the longest query that anybody waits for.
MYSQL_READ_TIMEOUT_S: Final = 3600

#: The same for sending a statement, in seconds: a server that does not read for so long is not going to.
MYSQL_WRITE_TIMEOUT_S: Final = 60

# -- pools' options ----------------------------------------------------------------------------------------------

#: The longest time that an option of a pool may be, in seconds: a year, as PyMySQL's longest. threading.TIMEOUT_MAX,
#: at which a wait raises OverflowError, is 292 years on 64-bit Linux.
OPTION_SECONDS_MAX: Final = 31_536_000

# -- time limits of others ---------------------------------------------------------------------------------------

#: How long AWS lets a switchover take before it rolls back, unless it is told otherwise, and the least that it can be
#: told, in seconds. Source: AWS, SwitchoverBlueGreenDeployment, SwitchoverTimeout.
AWS_SWITCHOVER_TIMEOUT_S: Final = 300
AWS_SHORTEST_SWITCHOVER_S: Final = 30

#: What a request takes beside the hold of its checkout, in seconds: a server's time limit has to leave room for it.
REQUEST_MARGIN_S: Final = 5.0

# -- workers -----------------------------------------------------------------------------------------------------

#: How often a worker's watcher looks whether there is a monitor while there is none, in seconds. Where there is one it
#: looks when that would have been silent for HEARTBEAT_STALE_S, and when a connection is to be cut. In a switchover it
#: looks as often at what its pools do, while that changes.
WATCH_INTERVAL_S: Final = 0.25

#: While it does not change it takes longer and longer from one look to the next, up to so many seconds. A look
#: costs several times what waking up costs.
LOOK_INTERVAL_MAX_S: Final = 4.0

#: How much CPU the other threads of a process use, in seconds, before its watcher, awake for another reason, takes the
#: process for one in which something happens, and looks. A checkout with a statement uses a fifth of that.
BUSY_CPU_S: Final = 0.001

#: How long what is published goes before rows and logs, in seconds: callers are let go at that moment, and every
#: process of the host wants the cores for them.
NEWS_FIRST_S: Final = 0.05

#: How long a step of a watcher may take, in seconds, before what it stalls at is left alone with its thread and another
#: one takes the process's other deployments on. Steps take less than a millisecond.
STALL_S: Final = 0.5

#: How old a worker's row may be, in seconds, before its process counts as one that does not keep up: it writes
#: the row in every LOOK_INTERVAL_MAX_S, unless it is stopped or its server lets threads run in requests only.
ROW_STALE_S: Final = 6.0

#: Tasks that go on in one turn of their event loop when a hold ends; other tasks have theirs in between.
WAKE_BATCH: Final = 50

#: Calls that block, of a password callable or a resolver, which an event loop makes in threads at a time.
LOOP_CALLS: Final = 4

#: Longest that a cancelled task waits for the server to take the request to cancel its statement, in seconds; after
#: that its connection is closed. A server that works takes it within milliseconds.
CANCEL_TIMEOUT_S: Final = 1.0

#: How often a waiter looks at the mapped word where the kernel cannot wake it (no futex, gevent), in seconds.
POLL_INTERVAL_S: Final = 0.01

#: How long a waiter sleeps in the kernel before it looks at the word again, in seconds: a monitor to which a sandbox
#: refuses futex changes the word and wakes nobody. Watchers wake more often (HEARTBEAT_STALE_S), and whoever finds a
#: change by its own clock wakes the others, as well as callers whose turn at a release is lost (LINE_S); so this is for
#: a process whose watcher has not come to be.
FUTEX_SLEEP_S: Final = 4.0

#: The shortest time limit of an attempt to connect that libpq and psycopg keep, in seconds.
SHORTEST_CONNECT_S: Final = 2

#: Pause between two attempts to connect while a switchover is under way, in seconds. A driver's own back-off
#: starts at a second, which would be the longest part of the gap.
RECONNECT_INTERVAL_S: Final = 0.02

#: Connections that a host opens at a time after a switchover, for each of its cores; each pool one at least. A login is
#: work for a core, about half of it the client's: with more at a time everybody's first comes when all are done, and a
#: pool's first serves its other callers in turn. Measured with 4 processes of 2 threads on 2 cores: 3 for each core
#: made the last caller wait for 0.09 s, 2 for 0.07 s.
CONNECTS_PER_CORE: Final = 2

#: At a release the processes of a host log in one after the other: at first as many as CONNECTS_PER_CORE says, each of
#: which lets the next one go, and one more in so many seconds for each core, because some may take long; after LINE_S
#: everybody goes on. Computed for 64 processes on 2 cores: where a login is work alone (5.5 ms), half of them have
#: theirs in 105 ms instead of 176, and where it is 3 ms of work and 5 ms of waiting, the last in 110 ms instead of 101.
#: On a host that others keep busy a few at a time get less of the cores than all at once, hence no longer than that.
LINE_PACE_S: Final = 0.016
LINE_S: Final = 0.12

#: How long a watcher's own work gives way to callers of its process who are let go, in seconds: it is done when the
#: last of many processes has its connection.
CALLERS_FIRST_S: Final = 0.3

#: How often a reader tries again to read a slot that was rewritten under its eyes. A writer publishes a few
#: times a second and a read takes microseconds, so a second attempt is already rare.
READ_ATTEMPTS: Final = 32

#: The longest pause between two such attempts, in seconds; a refused password is not to be tried 50 times a second.
RECONNECT_INTERVAL_MAX_S: Final = 0.25

#: How long a line of the log that says the same as the one before is left out, in seconds.
LOG_REPEAT_S: Final = 60.0

#: How often one unit of work is begun, at most. A switchover cuts it once or twice.
UNIT_ATTEMPTS: Final = 20

#: The pause before a unit of work is begun again, in seconds: doubled from the first to the second.
UNIT_PAUSE_S: Final = 0.02
UNIT_PAUSE_MAX_S: Final = 0.5

#: How long a unit of work is begun again after cuts that no switchover explains yet, in seconds: a monitor that was
#: stopped before it could tell of one is replaced within 5 s, and the next one reads at once.
UNIT_UNEXPLAINED_S: Final = 6.0

#: Characters of a receipt's id: room for a task's id, or a topic, partition and offset. Source: our own DDL.
RECEIPT_ID_CHARS: Final = 200

#: How long units of work go on without receipts where the table cannot be used, in seconds, before they look again.
RECEIPTS_RETRY_S: Final = 60.0

#: Old receipts are deleted by units of work, so many rows at a time, and by each process after so many receipts or
#: seconds; sooner where it has just found as many as that. Few enough units that the 99th percentile of their times
#: stays what it is, and often enough that a process deletes what it writes. Measured in docs/units-of-work.md.
RECEIPTS_DELETED_AT_ONCE: Final = 500
RECEIPTS_DELETION_EVERY: Final = 500
RECEIPTS_DELETION_S: Final = 60.0
RECEIPTS_BACKLOG_EVERY: Final = 300
RECEIPTS_BACKLOG_S: Final = 5.0

#: The longest that such a deletion waits for a lock, and takes, in ms; on MySQL it is a second for a lock.
RECEIPTS_LOCK_MS: Final = 50
RECEIPTS_STATEMENT_MS: Final = 500

#: How long old blue, while it does not answer, is asked what became of a COMMIT, in seconds: it is shut during a
#: switchover, and lets clients in again 0.3 to 1.5 s after the release. Source: docs/major-upgrade.md.
OLD_BLUE_S: Final = 15.0

#: After all connections of a pool were replaced because their server had refused a write: how long new ones are kept
#: although theirs refuses one, too, in seconds. Doubled from one replacement to the next, until no write was refused
#: for the longest one. A name that moves in a failover is followed within twice the time that it takes to move, and a
#: server that stays read-only costs a pool two replacements a minute.
DISTRUST_INTERVAL_S: Final = 0.1
DISTRUST_INTERVAL_MAX_S: Final = 30.0

#: While a deployment waits for its switchover every process tries its own login on green: how soon again after one that
#: worked and after one that was refused, in seconds, give or take half of it. Passwords and accounts change in hours;
#: an operator who has put an account right waits for the second. And how many a host tries in a second at first.
LOGIN_TRIAL_INTERVAL_S: Final = 600.0
LOGIN_TRIAL_RETRY_S: Final = 60.0
LOGIN_TRIALS_PER_S: Final = 10.0
#: The same after a handshake that was broken off over TLS. MySQL counts these by client host, and shuts the host out
#: after 100 without a login in between (max_connect_errors).
LOGIN_TRIAL_TLS_S: Final = 3600.0
#: A server may lock an account after some wrong passwords. So while one process of a host is refused, the others wait
#: for it to be let in, and look so often, in seconds.
LOGIN_TRIAL_WAIT_S: Final = 5.0

# -- the pool under a MySQL pool ---------------------------------------------------------------------------------

#: The most connections that a MySQL pool may have where its user names no number. Source: the largest max_connections
#: that MySQL and MariaDB can be given.
MYSQL_CONNECTIONS_MAX: Final = 100_000

#: A connection that was idle for less is handed out without asking its server, in seconds. Source: HikariCP.
CHECK_AFTER_IDLE_S: Final = 0.5

#: The longest such question, in seconds; a server answers in a millisecond, and another connection can be opened.
CHECK_TIMEOUT_S: Final = 5.0

#: How often connections that are too old, that nobody needs, or that are missing, are looked for, in seconds. An idle
#: process wakes no more often than that.
KEEP_INTERVAL_S: Final = 10.0

#: Part of its lifetime that a connection may end early, so that not all are replaced at once.
LIFETIME_JITTER: Final = 0.1

#: TLS contexts that a process keeps; one for each set of certificates that its DSNs name.
SSL_CONTEXTS: Final = 16

# -- fleet -------------------------------------------------------------------------------------------------------

#: How often a leader gives a sign of life, in seconds: at other times and in a switchover.
FLEET_HEARTBEAT_S: Final = 0.5
FLEET_HEARTBEAT_SWITCHING_S: Final = 0.1

#: After how long without a message that counts a host asks the database itself, in seconds; at other times and in a
#: switchover. Source: behaviour.md §11.
FLEET_SILENCE_S: Final = 1.5
FLEET_SILENCE_SWITCHING_S: Final = 0.4

#: How often a leader repeats its readings whole, in seconds: who joins needs one such message.
FLEET_WHOLE_S: Final = 5.0

#: How many questions a second all hosts together ask a server while they ask it themselves: each host asks once in
#: (hosts / budget) seconds then. Source: behaviour.md §11.
FLEET_BUDGET_PER_S: Final = 200

#: How old a message may be that counts, and how far two hosts' clocks may differ, in seconds.
FLEET_FRESH_S: Final = 2.0
FLEET_CLOCK_ERROR_S: Final = 1.0

#: How far ahead of the clock a term may be, in seconds, which are what terms of a new stream begin with.
FLEET_TERM_AHEAD_S: Final = 86_400

#: Between two claims of a host that were refused or not answered, in seconds, give or take half of it.
FLEET_CLAIM_PAUSE_S: Final = 0.5

#: How long a host does not claim whose clock differs from most others', and the longest that one waits which others
#: have beaten again and again without a word that it can believe, in seconds.
FLEET_BARRED_S: Final = 60.0

#: Over how long the hosts spread who succeeds a leader that resigns, in seconds; at other times and in a switchover.
FLEET_SUCCESSION_S: Final = 0.3
FLEET_SUCCESSION_SWITCHING_S: Final = 0.1

#: How long a host that has asked for itself waits for somebody to lead before it counts as on its own, in seconds.
FLEET_VACANT_S: Final = 1.0

#: How long a host pauses after the bus has failed, in seconds: doubled from the first to the second.
FLEET_PAUSE_S: Final = 0.1
FLEET_PAUSE_MAX_S: Final = 1.0

#: How often keys are made anew by what makes them, in seconds: a change of key takes as long to reach a monitor.
FLEET_KEYS_LIFE_S: Final = 60.0

#: How often a monitor looks whether there is something to report, and the shortest time between two nudges that it
#: passes on, in seconds; how long it waits for its farewell to be written.
FLEET_LOOK_S: Final = 1.0
#: How long each host leaves the others to report what has changed for all, in seconds, up to FLEET_LOOK_S in all.
FLEET_TURN_TO_REPORT_S: Final = 0.01
FLEET_NUDGE_S: Final = 0.5
FLEET_LEAVE_S: Final = 0.5

#: How often a snapshot tells at most that the number of hosts has changed, in seconds: each wakes every worker.
FLEET_SHOW_S: Final = 5.0

#: While a server does not answer the leader the other hosts take turns to ask it, one of them in so many seconds; and
#: how long a host that was not answered leaves the leadership to those that are, in seconds.
FLEET_TURN_S: Final = 0.2
FLEET_UNANSWERED_S: Final = 0.3

#: How long one reading of the bus may wait, in seconds, at other times and in a switchover, and how long the client
#: waits for a server that says nothing. A server returns up to a tenth of a second late.
FLEET_BLOCK_S: Final = 0.4
FLEET_BLOCK_SWITCHING_S: Final = 0.1
FLEET_TIMEOUT_S: Final = 1.0

#: Entries that are kept of the leaders' stream, about; those read at a time; and the largest that is read, in bytes:
#: the readings of a deployment with as many endpoints as there may be.
FLEET_ENTRIES: Final = 64
FLEET_ENTRIES_READ: Final = 128
FLEET_ENTRY_BYTES: Final = 65_536
#: The largest answer of the bus that is read, in bytes, and the longest that it may take, in seconds: two streams full
#: of the largest entries. Somebody who may write there could have a monitor read gigabytes.
FLEET_ANSWER_BYTES: Final = 16_777_216
FLEET_ANSWER_S: Final = 5.0

#: How often a host reports, in seconds, give or take a fifth, and after how long without a report it counts no more.
FLEET_REPORT_S: Final = 5.0
FLEET_REPORT_LIFE_S: Final = 16.0
#: How long `bgpool fleet status` remembers a host that reports no more and has not left, in seconds: until whoever
#: looks has seen it, and not until all pods of the last roll-out are listed.
FLEET_GONE_S: Final = 180.0
#: Hosts of which reports are kept, about, for as long as a report counts.
FLEET_HOSTS: Final = 2_000
#: How long the bus must have been in order for the log to say that it works again, in seconds: a host that may read and
#: not write learns of it with each report.
FLEET_WORKS_S: Final = 15.0
#: Characters of one text in a message or report: a server's error, what a host lacks.
FLEET_TEXT_CHARS: Final = 500
#: What a host lacks that it reports, at most; it has more words for each in its own `bgpool status`.
FLEET_MISSING: Final = 4
#: The least number of bytes of a key, and the most keys at a time: a change of key has two, and one may overtake it.
FLEET_KEY_BYTES: Final = 32
FLEET_KEYS: Final = 4
