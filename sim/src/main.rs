//! `sim --seeds N [--from S] [--jobs J] [--failures F] [--seconds T]` runs seeds; `--seed S
//! [--trace] [--shrink]` tells the story of one, made as short as it goes; `--small N [--seed ORDER]`
//! tries every N-th world of the small search. Exit code 1: a seed failed (or, where panics abort, a
//! signal after the command that repeats the run).
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a command-line program that measures its own speed"
)]

use sim::config::Config;
use sim::entropy::Entropy;
use sim::run::{Report, run, run_seed};
use sim::shrink::shrink;
use sim::small::Search;
use sim::story::Detail;
use std::cell::Cell;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

thread_local! {
    /// The seed that this thread runs, for a panic that ends the program.
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// How to run a seed again.
fn repeat(seed: u64) -> String {
    format!("cargo run --profile sim -p sim -- --seed {seed} --trace")
}

struct Arguments {
    seeds: u64,
    from: u64,
    seed: Option<u64>,
    trace: bool,
    shrink: bool,
    jobs: u64,
    failures_max: usize,
    /// Worlds of the small search are tried, each so many-th; 0: random runs.
    small: u64,
    /// No seed is begun after this many seconds; 0: no limit.
    seconds: u64,
}

fn arguments() -> Result<Arguments, String> {
    let mut parsed = Arguments {
        seeds: 1000,
        from: 0,
        seed: None,
        trace: false,
        shrink: false,
        jobs: 1,
        failures_max: 20,
        small: 0,
        seconds: 0,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || -> Result<u64, String> {
            let text = words.next().ok_or(format!("{word} needs a number"))?;
            text.parse().map_err(|e| format!("{word} {text}: {e}"))
        };
        match word.as_str() {
            "--seeds" => parsed.seeds = number()?,
            "--from" => parsed.from = number()?,
            "--seed" => parsed.seed = Some(number()?),
            "--jobs" => parsed.jobs = number()?.clamp(1, 64),
            "--failures" => parsed.failures_max = usize::try_from(number()?).unwrap_or(usize::MAX),
            "--small" => parsed.small = number()?.max(1),
            "--seconds" => parsed.seconds = number()?,
            "--trace" => parsed.trace = true,
            "--shrink" => parsed.shrink = true,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(parsed)
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    std::panic::set_hook(Box::new(|info| {
        if std::env::var_os("SIM_BACKTRACE").is_some() {
            eprintln!("{info}\n{}", std::backtrace::Backtrace::force_capture());
        } else if let Some(at) = info.location() {
            eprintln!("panic at {at}");
        }
        if let (true, Some(seed)) = (cfg!(panic = "abort"), SEED.get()) {
            eprintln!("seed {seed} FAILED; repeat: {}", repeat(seed));
        }
    }));
    match arguments.seed {
        Some(seed) if arguments.small == 0 => one(seed, &arguments),
        Some(_) | None => many(&arguments),
    }
}

fn one(seed: u64, arguments: &Arguments) -> ExitCode {
    let detail = if arguments.trace {
        Detail::Frames
    } else {
        Detail::Events
    };
    let mut config = Config::from_seed(seed);
    if arguments.shrink {
        config = shrink(&config).0;
    }
    println!("{config:#?}");
    let report = run(config, Entropy::from_seed(seed).fork(2), detail);
    println!("{}", report.story);
    println!(
        "seed {seed}: {} events, {:.1} s, requests {:?}, hash {:016x}",
        report.events,
        report.span as f64 / 1e9,
        report.requests,
        report.hash
    );
    match report.failure {
        None => ExitCode::SUCCESS,
        Some(why) => {
            println!("FAILED: {why}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    events: u64,
    span: u64,
    requests: [u64; 3],
    compared: [u64; 2],
    activations: u64,
    losses: u64,
    crashes: u64,
    power_cuts: u64,
    take_overs: u64,
    seals: u64,
    faults: u64,
    replacements: u64,
    failures: Vec<(u64, String)>,
}

impl Total {
    fn add(&mut self, seed: u64, report: Report) {
        self.seeds += 1;
        self.events += report.events;
        self.span += report.span;
        for (sum, count) in self.requests.iter_mut().zip(report.requests) {
            *sum += count;
        }
        for (sum, count) in self.compared.iter_mut().zip(report.compared) {
            *sum += count;
        }
        self.activations += report.counts.activations;
        self.losses += report.counts.losses;
        self.crashes += report.counts.crashes;
        self.power_cuts += report.counts.power_cuts;
        self.take_overs += report.counts.take_overs;
        self.seals += report.counts.seals;
        self.faults += report.counts.faults;
        self.replacements += report.counts.replacements;
        if let Some(why) = report.failure {
            let first = why.lines().next().unwrap_or("").to_string();
            println!("seed {seed} FAILED in phase {:?}: {first}", report.phase);
            self.failures.push((seed, first));
        }
    }
}

fn many(arguments: &Arguments) -> ExitCode {
    let begun = Instant::now();
    let next = AtomicU64::new(arguments.from);
    let mut end = arguments.from + arguments.seeds;
    let search = (arguments.small > 0).then(|| Search::new(arguments.seed.unwrap_or(0)));
    if let Some(search) = &search {
        end = end.min(search.worlds() / arguments.small);
        println!(
            "{} places of a fault, {} worlds, every {}th from {}",
            search.places(),
            search.worlds(),
            arguments.small,
            arguments.from
        );
    }
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..arguments.jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let full = total
                        .lock()
                        .is_ok_and(|t| t.failures.len() >= arguments.failures_max);
                    let late =
                        arguments.seconds > 0 && begun.elapsed().as_secs() >= arguments.seconds;
                    if seed >= end || full || late {
                        return;
                    }
                    SEED.set(Some(seed));
                    let report = match &search {
                        Some(search) => search.run(seed * arguments.small, Detail::Off),
                        None => run_seed(seed, Detail::Off),
                    };
                    if let Ok(mut total) = total.lock() {
                        total.add(seed, report);
                    }
                }
            });
        }
    });
    let Ok(total) = total.into_inner() else {
        return ExitCode::FAILURE;
    };
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{} seeds passed, {} failed; {} events in {seconds:.1} s = {:.0} events/s; \
         {:.2} virtual hours",
        total.seeds - total.failures.len() as u64,
        total.failures.len(),
        total.events,
        total.events as f64 / seconds,
        total.span as f64 / 3.6e12
    );
    println!(
        "requests {:?} (asked, well, error); {} faults: {} crashes, {} power cuts, {} take-overs; \
         {} terms active, {} losses accepted, {} clean stops, {} replacements",
        total.requests,
        total.faults,
        total.crashes,
        total.power_cuts,
        total.take_overs,
        total.activations,
        total.losses,
        total.seals,
        total.replacements
    );
    println!(
        "{} comparisons of replicas, {} differing blocks known to",
        total.compared[0], total.compared[1]
    );
    for (seed, why) in &total.failures {
        println!("seed {seed}: {why}\n  repeat: {}", repeat(*seed));
    }
    if arguments.small == 0 && total.seeds < arguments.seeds {
        println!(
            "stopped after {} of {} seeds (--seconds, --failures)",
            total.seeds, arguments.seeds
        );
    }
    if total.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
