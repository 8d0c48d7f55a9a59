"""The commands."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

import bgpool
from bgpool.base_errors import ConfigurationError, Error, SegmentError
from bgpool.cli import status as status_command
from bgpool.core.engine import Engine
from bgpool.core.events import Order
from bgpool.segment.paths import Exhausted

if TYPE_CHECKING:
    from bgpool.lab import ProgramsError

__all__ = ["app"]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    # With any version of typer: a variable may contain a DSN with a password.
    pretty_exceptions_show_locals=False,
    help="Carry Python applications through an RDS/Aurora Blue/Green switchover.",
)


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    if version:
        typer.echo(bgpool.__version__)
        raise typer.Exit


_Engine = Annotated[Engine, typer.Option(help="The engine. MySQL's or MariaDB's servers must be installed.")]
_Programs = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="The directory of the servers' programs, or of their bin or sbin; path: installed ones. See docs/lab.md.",
    ),
]
_Pair = Annotated[
    str,
    typer.Option(
        "--pair",
        metavar="minor|major",
        help="major: green is a logical replica of blue with a newer version (PostgreSQL). See docs/lab.md.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_BgId = Annotated[str | None, typer.Option(help="The deployment's id; default: the one in the run directory.")]
_RunDir = Annotated[Path | None, typer.Option(help="The bg_run_dir; default: the pools' default.")]


@app.command(
    help=status_command.SUMMARY,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def status(context: typer.Context) -> None:
    raise typer.Exit(status_command.main(context.args))


@app.command()
def watch(
    bg_id: _BgId = None,
    run_dir: _RunDir = None,
    until_done: Annotated[bool, typer.Option("--until-done", help="Exit when a switchover has ended.")] = False,
    timeout: Annotated[float | None, typer.Option(min=0.0, help="Exit after this time, in seconds.")] = None,
    json: _Json = False,
) -> None:
    """Show the status live through a switchover: redrawn on a terminal, elsewhere a line per change.

    Exit status: 130 after Ctrl-C; 3 at the end of --timeout; with --until-done 0 after COMPLETED, 1 after a rollback, 4
    if only the timer ended the switchover: check it in AWS then; 2 like status.
    """
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from bgpool.cli import watch as command

        raise typer.Exit(command.run(bg_id, run_dir, as_json=json, until_done=until_done, timeout_s=timeout))
    except Error as error:
        raise _unusable(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def hold(
    duration: Annotated[str, typer.Option("--for", metavar="SECONDS", help="1 to 3600; also 90s, 5m or 1h.")],
    bg_id: _BgId = None,
    run_dir: _RunDir = None,
) -> None:
    """Hold every checkout on this host for a while: planned maintenance without a switchover. Closes no connection.

    New transactions on connections in use are held, too. Each caller waits up to bg_connect_timeout_ms. The hold ends
    after its time, with bgpool release, or when a switchover begins.

    Exit status: 0 if callers are held; 1 if a switchover is in progress; 2 if there is no running monitor, for an
    invalid call, or an untrusted run directory.
    """
    _give(Order.HOLD, bg_id, run_dir, duration)


@app.command()
def release(bg_id: _BgId = None, run_dir: _RunDir = None) -> None:
    """Stop holding callers on this host: end bgpool hold, or release blue's callers in a switchover.

    In a switchover no caller of blue is held from then on until it is over, an hour at most; callers connect by name.
    Callers of green are held and rejected as before.

    Exit status: 0 if no caller is held; 2 if there is no running monitor, for an invalid call, or an untrusted run
    directory.
    """
    _give(Order.RELEASE, bg_id, run_dir)


def _give(order: Order, bg_id: str | None, run_dir: Path | None, duration: str | None = None) -> None:
    from bgpool.cli import order as command

    try:
        seconds = command.read_duration(duration) if duration is not None else 0
        answer = command.give(order, bg_id, run_dir, seconds)
    except Error as error:
        raise _unusable(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    typer.echo(answer.text, err=not answer.done)
    raise typer.Exit(0 if answer.done else 1)


_fleet = typer.Typer(no_args_is_help=True, help="All hosts of a fleet at once, over its bus, from anywhere.")
app.add_typer(_fleet, name="fleet")

_FleetDsn = Annotated[
    str | None,
    typer.Argument(
        metavar="[DSN]",
        help="The DSN for get_pool, for its bg_ parameters; - reads it from standard input, invisible to ps.",
    ),
]
_FleetBgId = Annotated[str | None, typer.Option(help="The deployment's id; default: the DSN's, else 1.")]
_FleetUrl = Annotated[
    str | None,
    typer.Option("--fleet", metavar="URL", help="The bus, without a password; default: the DSN's, else $BGPOOL_FLEET."),
]


@_fleet.command("status")
def fleet_status(
    dsn: _FleetDsn = None,
    bg_id: _FleetBgId = None,
    fleet: _FleetUrl = None,
    ready: Annotated[bool, typer.Option("--ready", help="Check whether all hosts may be switched over.")] = False,
    hosts: Annotated[int, typer.Option(min=0, help="The minimum number of hosts, to be ready.")] = 0,
    json: _Json = False,
) -> None:
    """Show the reports of all hosts of a fleet: phase, obstacles, workers, held callers, role in the fleet, clock.

    The key is $BGPOOL_FLEET_KEY, or the DSN's. Reads the bus for a second or two; opens no other connection.

    Exit status: 0; 1 if no host has reported recently, or with --ready if the fleet may not be switched over; 2 if the
    bus cannot be used, or for an invalid call; 130 after Ctrl-C.
    """
    with _on_fleet():
        from bgpool.cli import fleet as command

        found = command.Fleet.of(_dsn(dsn), bg_id, fleet)
        raise typer.Exit(command.show(found, ready=ready, least=hosts, as_json=json))


@_fleet.command("hold")
def fleet_hold(
    duration: Annotated[str, typer.Option("--for", metavar="SECONDS", help="1 to 3600; also 90s, 5m or 1h.")],
    dsn: _FleetDsn = None,
    bg_id: _FleetBgId = None,
    fleet: _FleetUrl = None,
) -> None:
    """Hold every checkout on all hosts for a while, like bgpool hold on one.

    Exit status: 0 if all hosts have accepted the order; 1 if some have not (they are named), or if a switchover is in
    progress. 2 if there is no host to accept it, the bus cannot be used, or for an invalid call; 130 after Ctrl-C.
    """
    _give_fleet(Order.HOLD, dsn, bg_id, fleet, duration)


@_fleet.command("release")
def fleet_release(dsn: _FleetDsn = None, bg_id: _FleetBgId = None, fleet: _FleetUrl = None) -> None:
    """Stop holding callers on all hosts, like bgpool release on one.

    Exit status: 0 if all hosts have accepted the order; 1 if some have not (they are named); 2 if there is no host to
    accept it, the bus cannot be used, or for an invalid call; 130 after Ctrl-C.
    """
    _give_fleet(Order.RELEASE, dsn, bg_id, fleet)


def _give_fleet(order: Order, dsn: str | None, bg_id: str | None, url: str | None, duration: str | None = None) -> None:
    with _on_fleet():
        from bgpool.cli import fleet as command
        from bgpool.cli.order import read_duration

        seconds = read_duration(duration) if duration is not None else 0
        answer = command.give(command.Fleet.of(_dsn(dsn), bg_id, url), order, seconds)
        typer.echo(answer.text, err=not answer.done)
        raise typer.Exit(0 if answer.done else 1)


@contextlib.contextmanager
def _on_fleet() -> Iterator[None]:
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except Error as error:
        raise _unusable(str(error)) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _dsn(given: str | None) -> str | None:
    return sys.stdin.readline() if given == "-" else given


@app.command()
def demo(
    workers: Annotated[int, typer.Option(min=1, max=64, help="Processes, forked after the pool was made.")] = 4,
    threads: Annotated[int, typer.Option(min=1, max=16, help="Threads in each of them.")] = 2,
    engine: _Engine = Engine.POSTGRESQL,
    programs: _Programs = None,
    pair: _Pair = "minor",
    kill_monitor: Annotated[bool, typer.Option(help="kill -9 the monitor in the middle of IN_PROGRESS.")] = False,
) -> None:
    """Switch real servers over under load, and judge the outcome of every row.

    Exit status: 0 if no row was lost, doubled or split, and no thread is missing; 1 otherwise, or if the demo failed;
    2 for an invalid call, or if a library or the servers' programs are missing; 130 after Ctrl-C.
    """
    try:
        from bgpool.cli import demo as show
        from bgpool.lab import LabError, ProgramsError
    except ModuleNotFoundError as error:
        raise _unusable(f"the demo needs {error.name}: pip install 'bgpool[demo]'") from None
    signal.signal(signal.SIGTERM, _interrupt)
    options = _pair_options(engine, programs=programs, upgrade=pair)
    try:
        clean = show.run(engine, options, workers, threads, kill_monitor=kill_monitor)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ProgramsError as error:
        raise _no_programs(error) from None
    except LabError as error:
        sys.exit(f"the demo failed: {error}")
    raise typer.Exit(0 if clean else 1)


@app.command(context_settings={"allow_interspersed_args": False})
def rehearse(
    command: Annotated[list[str], typer.Argument(metavar="CMD", help="Your application and its arguments, after --.")],
    engine: _Engine = Engine.POSTGRESQL,
    programs: _Programs = None,
    pair: _Pair = "minor",
    flavour: Annotated[str, typer.Option(metavar="rds|aurora", help="An instance, or a cluster.")] = "rds",
    scenario: Annotated[
        str,
        typer.Option(metavar="healthy|rollback|frozen|black-hole", help="The kind of switchover; see docs/testing.md."),
    ] = "healthy",
    scale: Annotated[
        float, typer.Option(min=0.25, max=60.0, help="The duration of the switchover, in units of seven seconds.")
    ] = 1.0,
    env: Annotated[list[str] | None, typer.Option(metavar="NAME[=SCHEME]", help="A variable for the DSN.")] = None,
    sql: Annotated[Path | None, typer.Option(help="SQL to execute first, as the role of the DSN: your tables.")] = None,
    url: Annotated[str | None, typer.Option(help="A URL on 127.0.0.1 that four clients GET and count.")] = None,
    every: Annotated[int, typer.Option(min=5, max=60_000, help="The interval of a client's requests, in ms.")] = 50,
    warm_up: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Seconds before the switchover.")] = 2.0,
    cool_down: Annotated[float, typer.Option(min=0.0, max=3600.0, help="Seconds after it.")] = 3.0,
    run_dir: Annotated[
        Path | None, typer.Option(help="A run directory for status and watch; keeps the timeline.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="The file for CMD's output; default: standard error.")] = None,
    json: _Json = False,
) -> None:
    """Run your application through a switchover of real servers, and report the effect on each process.

    CMD finds the DSN in $DATABASE_URL, or in the variables that are given with --env, and in addition BGPOOL_RESOLVER
    and BGPOOL_RUN_DIR. With SQLAlchemy: --env DATABASE_URL=postgresql+bgpool. CMD gets SIGTERM at the end.

    Exit status: 0 if all is well; 1 if a request failed, a process was lost, no caller used a pool, or the switchover
    did not end as expected or never began. 2 for an invalid call; 3 if the servers cannot be started; 130 after Ctrl-C.
    """
    try:
        from bgpool.cli import rehearse as show
        from bgpool.lab.rehearsal import Plan
    except ModuleNotFoundError as error:
        typer.echo(f"a rehearsal needs {error.name}: pip install 'bgpool[demo]' (in a clone: '.[demo]')", err=True)
        raise typer.Exit(3) from None
    signal.signal(signal.SIGTERM, _interrupt)
    plan = Plan(
        tuple(command),
        engine=engine,
        programs=programs,
        upgrade=pair,
        flavour=flavour,
        scenario=scenario,
        scale=scale,
        variables=tuple(env or ["DATABASE_URL"]),
        sql=sql,
        url=url,
        every_s=every / 1000,
        warm_up_s=warm_up,
        cool_down_s=cool_down,
        run_dir=run_dir,
    )
    try:
        status = show.run(plan, log, as_json=json)
    except KeyboardInterrupt:
        status = 130
    raise typer.Exit(status)


_lab = typer.Typer(no_args_is_help=True, help="Real servers in blue/green pairs: the catalogue of switchovers.")
app.add_typer(_lab, name="lab")


@_lab.command("scenarios")
def lab_scenarios(json: _Json = False) -> None:
    """List the catalogue."""
    _lab_commands().list_scenarios(as_json=json)


@_lab.command("run")
def lab_run(
    names: Annotated[list[str] | None, typer.Argument(help="Scenarios by name; all of them if none is given.")] = None,
    engine: _Engine = Engine.POSTGRESQL,
    programs: _Programs = None,
    tls: Annotated[
        str | None,
        typer.Option(
            metavar="offered|verified|disabled",
            help="TLS of the servers: the driver's default, verified, or none. Default: the scenario's.",
        ),
    ] = None,
    shut: Annotated[
        str,
        typer.Option(
            metavar="locked|open|super-read-only|offline", help="The way to shut the servers; see docs/lab.md."
        ),
    ] = "locked",
    pair: _Pair = "minor",
    json: _Json = False,
) -> None:
    """Run scenarios on real servers, about seven seconds each, and judge them.

    Exit status: 0 if all is well; 1 if not; 2 for an unknown name or value, a scenario that does not exist on that
    engine or pair, and if the servers' programs are missing; 130 after Ctrl-C.
    """
    commands = _lab_commands()
    from bgpool.lab import ProgramsError
    from bgpool.lab.scenarios import catalogue_of, find

    signal.signal(signal.SIGTERM, _interrupt)
    way = False if tls is None else tls
    options = _pair_options(engine, programs=programs, tls=way, shut=shut, upgrade=pair)
    try:
        scenarios = [find(name, engine, pair) for name in names or catalogue_of(engine, pair)]
    except ValueError as error:
        raise _unusable(str(error)) from None
    try:
        clean = commands.play_scenarios(scenarios, engine, options, as_json=json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ProgramsError as error:
        raise _no_programs(error) from None
    raise typer.Exit(0 if clean else 1)


@_lab.command("simulate")
def lab_simulate(
    count: Annotated[int, typer.Option(min=1, help="The number.")] = 1000,
    seed: Annotated[int, typer.Option(help="The first one's seed; the others follow.")] = 0,
    processes: Annotated[int, typer.Option(min=1, max=64, help="The number of processes.")] = 1,
    trace: Annotated[bool, typer.Option(help="Print the events of the one with --seed.")] = False,
    fleet: Annotated[
        int,
        typer.Option(
            min=0, max=5000, help="Simulate a fleet of this many hosts, at least 2; 0 for one host and its callers."
        ),
    ] = 0,
) -> None:
    """Simulate switchovers with random faults: the real state machine, a model of everything else, no servers.

    With --fleet N: a fleet of N monitors on a failing bus, compared with the result of each host's own queries.

    Exit status: 0 if every promise was kept; 1 if not, with the seed printed; 130 after Ctrl-C.
    """
    commands = _lab_commands()
    try:
        if fleet:
            hosts = max(2, fleet)
            kept = (
                commands.trace_fleet(seed, hosts) if trace else commands.simulate_fleets(count, seed, hosts, processes)
            )
        else:
            kept = commands.trace_simulation(seed) if trace else commands.simulate(count, seed, processes)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    raise typer.Exit(0 if kept else 1)


@_lab.command("chaos")
def lab_chaos(
    seconds: Annotated[float, typer.Option(min=1.0, max=7200.0, help="Start no switchover after this time.")] = 600.0,
    seed: Annotated[int, typer.Option(help="The seed for what is killed and when.")] = 0,
    engine: _Engine = Engine.POSTGRESQL,
    programs: _Programs = None,
    pair: _Pair = "minor",
    json: _Json = False,
) -> None:
    """Run switchovers one after the other while workers and monitors are killed and stopped at random.

    Exit status: 0 if no row was lost, doubled or split, no thread hung, and memory and descriptors did not grow; 1 if
    not; 2 for an invalid call, or if the servers' programs are missing; 130 after Ctrl-C.
    """
    commands = _lab_commands()
    from bgpool.lab import ProgramsError

    signal.signal(signal.SIGTERM, _interrupt)
    options = _pair_options(engine, programs=programs, upgrade=pair)
    try:
        sys.exit(0 if commands.run_chaos(engine, options, seed, seconds, as_json=json) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    except ProgramsError as error:
        raise _no_programs(error) from None


@_lab.command("fleet")
def lab_fleet(
    hosts: Annotated[int, typer.Option(min=1, max=200, help="The number of hosts; a monitor each, of 35 MB.")] = 30,
    count: Annotated[int, typer.Option(min=1, max=1000, help="The number of switchovers.")] = 1,
    no_fleet: Annotated[
        bool, typer.Option("--no-fleet", help="Each host queries for itself, as without bg_fleet.")
    ] = False,
    kill_leader: Annotated[
        str | None, typer.Option(metavar="PHASE", help="Send SIGKILL to the leader, shortly before this phase ends.")
    ] = None,
    stop_leader: Annotated[
        str | None, typer.Option(metavar="PHASE", help="Send SIGSTOP to the leader, which continues after ten seconds.")
    ] = None,
    bus_fault: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="kill|stop|flush|del|failover PHASE", help="A fault of the bus; see docs/lab.md."),
    ] = None,
    programs: _Programs = None,
    json: _Json = False,
) -> None:
    """Switch a fleet of hosts over; count and judge their queries to the database.

    A single host runs first, for comparison. PHASE is CREATED, PREPARATION, IN_PROGRESS, POST or COMPLETED.

    Exit status: 0 if all is well; 1 if not; 2 for an invalid call, or if the servers' programs or those of the bus are
    missing; 130 after Ctrl-C.
    """
    _lab_commands()
    from bgpool.cli import lab_fleet as command
    from bgpool.lab import ProgramsError
    from bgpool.lab.fleet import Plan

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        fault = command.fault_of(kill_leader, stop_leader, bus_fault)
        plan = Plan(hosts, not no_fleet, fault, pair_options={"programs": programs})
    except ValueError as error:
        raise _unusable(str(error)) from None
    try:
        clean = command.play_fleet(plan, count, as_json=json)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ProgramsError as error:
        raise _no_programs(error) from None
    raise typer.Exit(0 if clean else 1)


@_lab.command("once")
def lab_once(
    count: Annotated[int, typer.Option(min=1, max=100_000, help="The number.")] = 50,
    seed: Annotated[int, typer.Option(min=0, help="The first one's seed; the others follow.")] = 1,
    failover: Annotated[
        bool,
        typer.Option("--failover", help="Failovers without a deployment, with bg_receipts=always, not switchovers."),
    ] = False,
    journal: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", dir_okay=False, help="Record each one in this file; recorded ones are not repeated."
        ),
    ] = None,
    engine: _Engine = Engine.POSTGRESQL,
    programs: _Programs = None,
    pair: _Pair = "minor",
    json: _Json = False,
) -> None:
    """Check that every unit of work is applied exactly once: switchovers with COMMITs in flight and workers killed.

    Half of the threads use receipts, the others do not. Each switchover takes about eight seconds.

    Exit status: 0 if all is well; 1 if not; 2 for an invalid call, a file that is no journal, or if the servers'
    programs are missing; 130 after Ctrl-C.
    """
    _lab_commands()
    from bgpool.cli import once
    from bgpool.lab import ProgramsError
    from bgpool.lab.once import Run

    signal.signal(signal.SIGTERM, _interrupt)
    options = _pair_options(engine, programs=programs, upgrade=pair)
    if failover and pair != "minor":
        raise _unusable("--failover is to a physical replica, or on MySQL to any: --pair minor is allowed")
    run = Run(engine, seed=seed, count=count, failover=failover, pair_options=options)
    again = ["--engine", engine.value, "--pair", pair, *(("--failover",) if failover else ())]
    again += ["--programs", programs] if programs else []
    try:
        raise typer.Exit(0 if once.play_once(run, journal, again, as_json=json) else 1)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except ProgramsError as error:
        raise _no_programs(error) from None
    except (ValueError, OSError) as error:
        raise _unusable(f"--journal: {error}") from None


def _pair_options(engine: Engine, **options: Any) -> dict[str, Any]:
    """Return *options* for a pair of *engine*; exit if there is no such pair."""
    from bgpool.lab import Pair

    try:
        Pair(engine=engine, **options)
    except ValueError as error:
        raise _unusable(str(error)) from None
    return options


def _lab_commands() -> ModuleType:
    try:
        from bgpool.cli import lab
    except ModuleNotFoundError as error:
        raise _unusable(f"the lab needs {error.name}: pip install 'bgpool[demo]'") from None
    return lab


@app.command()
def timeline(
    count: Annotated[int, typer.Argument(min=1, max=20, help="The number of switchovers, counted from the last.")] = 1,
    bg_id: Annotated[str | None, typer.Option(help="The deployment's id; default: the one with a history.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="The bg_run_dir; default: the pools' default.")] = None,
    html: Annotated[Path | None, typer.Option(help="Draw a self-contained HTML page.")] = None,
    svg: Annotated[Path | None, typer.Option(help="Draw only the picture.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it as PNG; needs bgpool\\[png].")] = None,
    json: _Json = False,
) -> None:
    """Show the last switchovers: summary, hold, evidence of the release, and a picture. Opens no connection.

    Exit status: 0; 1 if no switchover is recorded; 2 if the run directory is untrusted, a file cannot be written, or a
    library is missing.
    """
    from bgpool.cli import timeline as command

    try:
        command.run(count, bg_id, run_dir, command.Outputs(html, svg, png), as_json=json)
    except (command.NothingRecorded, command.Unusable) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1 if isinstance(error, command.NothingRecorded) else 2) from None


@app.command()
def monitor(
    dsn: Annotated[str, typer.Argument(help="The DSN for get_pool; - reads it from standard input, invisible to ps.")],
    bg_id: Annotated[str | None, typer.Option(help="The deployment's id; default: the DSN's, else 1.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="The bg_run_dir; default: the DSN's, else the pools' default.")
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[HOST]:PORT", help="Serve metrics for Prometheus; the default host is 127.0.0.1."),
    ] = None,
) -> None:
    """Run the monitor of this host in the foreground, for systemd and containers, until stopped.

    Exit status: 0 when stopped or replaced; 1 if another monitor is running, the metrics' port is not available, or a
    part of the monitor failed: start it again then. 2 if the DSN, a parameter or the run directory cannot be used, or a
    library is missing: starting it again will not help (systemd: RestartPreventExitStatus=2).
    """
    import logging

    from bgpool.dsn import parse
    from bgpool.logs import utc_formatter
    from bgpool.monitor.config import MonitorConfig
    from bgpool.monitor.process import run_monitor
    from bgpool.segment.paths import look_in

    handler = logging.StreamHandler()
    handler.setFormatter(utc_formatter("%(levelname)s %(name)s %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        given = {"bg_id": bg_id, "bg_run_dir": run_dir}
        place, settings, _ = parse(
            sys.stdin.readline() if dsn == "-" else dsn,
            {name: value for name, value in given.items() if value is not None},
        )
        config = MonitorConfig.of(place, settings, look_in(settings.bg_run_dir))
        if metrics is not None:
            from bgpool.cli.metrics import serve

            serve(metrics, config.bg_id, Path(config.run_dir))
        if not run_monitor(config, linger_s=None):
            sys.exit(f"another monitor of bg_id {settings.bg_id!r} is running on this host")
    except Error as error:
        if isinstance(error, (ConfigurationError, SegmentError)) and not isinstance(error, Exhausted):
            raise _unusable(str(error)) from None
        sys.exit(str(error))
    except KeyboardInterrupt:
        raise typer.Exit from None


@app.command()
def doctor(
    dsn: Annotated[str, typer.Argument(help="The DSN for get_pool; - reads it from standard input, invisible to ps.")],
    bg_id: Annotated[str | None, typer.Option(help="The deployment's id; default: the DSN's, else 1.")] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes with a pool, on all hosts; default: those on this host, else 1."),
    ] = None,
    max_size: Annotated[
        int | None, typer.Option(min=1, help="The size of each one's pool; default: the largest on this host, else 4.")
    ] = None,
    worker_timeout: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The seconds after which the server ends a busy worker, 0 for never; default: the value that"
            " processes on this host report, or else $GUNICORN_CMD_ARGS.",
        ),
    ] = None,
    json: _Json = False,
) -> None:
    """Check every prerequisite of a switchover on both sides, and suggest remedies. Changes nothing.

    Exit status: 0 if all is well, with or without warnings; 1 if a check failed; 2 if the DSN is invalid; 130 after
    Ctrl-C.
    """
    from bgpool.cli import doctor as command

    given = sys.stdin.readline() if dsn == "-" else dsn
    try:
        status = command.run(
            given, bg_id=bg_id, processes=workers, max_size=max_size, busy_limit_s=worker_timeout, as_json=json
        )
    except KeyboardInterrupt:
        status = 130
    raise typer.Exit(status)


@app.command()
def receipts(
    dsn: Annotated[str, typer.Argument(help="The DSN for get_pool; - reads it from standard input, invisible to ps.")],
    sql: Annotated[bool, typer.Option("--sql", help="Print the DDL and the grants, for psql or mysql.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Connect, and check whether units of work can use it.")
    ] = False,
    json: _Json = False,
) -> None:
    """Print the DDL of the receipts table, or check whether units of work can use it.

    The table is bgpool_receipts, or that of bg_receipts_table. --sql opens no connection: it uses engine, database and
    user of the DSN. Create the table before the deployment, so that green has it, too. --check changes nothing.

    Exit status: 0; with --check 1 if units cannot use the table, or the server refuses the application's login; 2 for
    an invalid DSN or call; 130 after Ctrl-C.
    """
    from bgpool.cli import receipts as command

    if sql == check or (sql and json):
        raise _unusable("receipts: either --sql or --check is needed; --json goes with --check")
    given = sys.stdin.readline() if dsn == "-" else dsn
    try:
        status = command.print_ddl(given) if sql else command.check(given, as_json=json)
    except KeyboardInterrupt:
        status = 130
    raise typer.Exit(status)


def _unusable(text: str) -> typer.Exit:
    """Return the exit for errors that a second attempt cannot fix: call, parameter, library, run directory."""
    typer.echo(text, err=True)
    return typer.Exit(2)


def _no_programs(error: ProgramsError) -> typer.Exit:
    """Return the exit for servers' programs that are missing or cannot be used."""
    return _unusable(error.advise("--programs DIR"))


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
