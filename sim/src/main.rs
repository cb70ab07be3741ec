//! `sim --seeds N [--from S] [--jobs J] [--failures F] [--seconds T]` runs seeds; `--seed S
//! [--trace] [--shrink]` tells the story of one, made as short as it goes; `--small N [--seed ORDER]`
//! tries every N-th world of the small search; `--orders [--deviations D] [--crashes C] [--cuts P]
//! [--part I/N] [--witness]` searches the orders of events of a small world, `--choices LIST` repeats a run of that
//! search. Exit code 1: a seed failed (or, where panics abort, a
//! signal after the command that repeats the run). With the feature `proof`, `--mutant NAME` breaks a
//! rule first, `--mutants [--quarter K | --only NAME]` looks for broken rules (exit code 1: one
//! survived), `--marks` demands that the seeds reach every coverage mark.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    reason = "a command-line program that measures its own speed"
)]

use sim::config::Config;
use sim::entropy::Entropy;
use sim::explore::{Bounds, Part};
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
    /// The orders of the small world are searched within these bounds.
    orders: bool,
    bounds: Bounds,
    part: Part,
    /// The run of these choices is repeated.
    choices: Option<String>,
    /// No seed is begun after this many seconds; 0: no limit.
    seconds: u64,
    #[cfg(feature = "proof")]
    mutants: bool,
    /// All seeds are run with each mutant, to see how many notice it.
    #[cfg(feature = "proof")]
    rates: bool,
    #[cfg(feature = "proof")]
    quarter: Option<u64>,
    /// Only these mutants.
    #[cfg(feature = "proof")]
    only: Vec<trilith_block::Mutant>,
    /// All but these.
    #[cfg(feature = "proof")]
    except: Vec<trilith_block::Mutant>,
    /// Every coverage mark must be hit.
    #[cfg(feature = "proof")]
    marks: bool,
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
        orders: false,
        bounds: Bounds {
            deviations: 1,
            crashes: 0,
            cuts: 0,
            witness: false,
        },
        part: Part { number: 0, of: 1 },
        choices: None,
        seconds: 0,
        #[cfg(feature = "proof")]
        mutants: false,
        #[cfg(feature = "proof")]
        rates: false,
        #[cfg(feature = "proof")]
        quarter: None,
        #[cfg(feature = "proof")]
        only: Vec::new(),
        #[cfg(feature = "proof")]
        except: Vec::new(),
        #[cfg(feature = "proof")]
        marks: false,
    };
    #[cfg(feature = "proof")]
    trilith_block::mutant::choose(None);
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        #[cfg(feature = "proof")]
        if word == "--mutant" {
            let name = words.next().ok_or("--mutant needs a name")?;
            trilith_block::mutant::choose(Some(proof::named(&name)?));
            continue;
        }
        #[cfg(feature = "proof")]
        if word == "--only" || word == "--except" {
            let name = words.next().ok_or(format!("{word} needs a name"))?;
            let list = if word == "--only" {
                &mut parsed.only
            } else {
                &mut parsed.except
            };
            list.push(proof::named(&name)?);
            continue;
        }
        if word == "--part" || word == "--choices" {
            let text = words.next().ok_or(format!("{word} needs an argument"))?;
            if word == "--part" {
                parsed.part = part(&text)?;
            } else {
                parsed.choices = Some(text);
            }
            continue;
        }
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
            "--orders" => parsed.orders = true,
            "--witness" => parsed.bounds.witness = true,
            "--deviations" => parsed.bounds.deviations = few(number()?),
            "--crashes" => parsed.bounds.crashes = few(number()?),
            "--cuts" => parsed.bounds.cuts = few(number()?),
            "--seconds" => parsed.seconds = number()?,
            "--trace" => parsed.trace = true,
            "--shrink" => parsed.shrink = true,
            #[cfg(feature = "proof")]
            "--mutants" => parsed.mutants = true,
            #[cfg(feature = "proof")]
            "--rates" => {
                parsed.mutants = true;
                parsed.rates = true;
            }
            #[cfg(feature = "proof")]
            "--quarter" => parsed.quarter = Some(number()?),
            #[cfg(feature = "proof")]
            "--marks" => parsed.marks = true,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    Ok(parsed)
}

fn few(number: u64) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX).min(100)
}

fn part(text: &str) -> Result<Part, String> {
    let pair = text.split_once('/').and_then(|(number, of)| {
        let (number, of): (u64, u64) = (number.parse().ok()?, of.parse().ok()?);
        (number < of).then_some(Part { number, of })
    });
    pair.ok_or(format!("--part {text}: it is I/N, I below N"))
}

fn main() -> ExitCode {
    let arguments = match arguments() {
        Ok(arguments) => arguments,
        Err(why) => {
            eprintln!("{why}");
            return ExitCode::from(2);
        }
    };
    #[cfg(feature = "proof")]
    if arguments.mutants {
        return proof::hunt_all(&arguments);
    }
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
    if arguments.orders {
        return orders(&arguments);
    }
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

/// Searches the orders of the small world, or repeats a run of that search.
fn orders(arguments: &Arguments) -> ExitCode {
    let (bounds, part) = (arguments.bounds, arguments.part);
    if let Some(choices) = &arguments.choices {
        let report = match sim::explore::Search::repeat(bounds, choices, Detail::Frames) {
            Ok(report) => report,
            Err(why) => {
                eprintln!("{why}");
                return ExitCode::from(2);
            }
        };
        println!("{}", report.story);
        println!("{} events: {:?}", report.events, report.failure);
        return ExitCode::from(u8::from(report.failure.is_some()));
    }
    let begun = Instant::now();
    let mut search = sim::explore::Search::new(bounds, part);
    let mut told = 0;
    while search.step() {
        let seconds = begun.elapsed().as_secs();
        let late = arguments.seconds > 0 && seconds >= arguments.seconds;
        if search.outcome.failures.len() >= arguments.failures_max || late {
            break;
        }
        if seconds >= told + 10 {
            told = seconds;
            let outcome = &search.outcome;
            println!(
                "{seconds} s: {} runs, {} states",
                outcome.runs, outcome.states
            );
        }
    }
    let outcome = &search.outcome;
    for (choices, why) in &outcome.failures {
        println!("choices {choices}: {}", why.lines().next().unwrap_or(""));
    }
    let what = if outcome.complete {
        "complete"
    } else {
        "STOPPED"
    };
    println!(
        "{what} within {} deviations, {} crashes, {} cuts, part {}/{}: {} states, {} runs, up to {} \
         choices in a run, {} failures, {:.1} s",
        bounds.deviations,
        bounds.crashes,
        bounds.cuts,
        part.number,
        part.of,
        outcome.states,
        outcome.runs,
        outcome.choices_max,
        outcome.failures.len(),
        begun.elapsed().as_secs_f64()
    );
    ExitCode::from(u8::from(!outcome.failures.is_empty()))
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
    betrayals: u64,
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
        self.betrayals += report.counts.betrayals;
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
         {} terms active, {} losses accepted, {} clean stops, {} replacements, {} runs betrayed by a disk",
        total.requests,
        total.faults,
        total.crashes,
        total.power_cuts,
        total.take_overs,
        total.activations,
        total.losses,
        total.seals,
        total.replacements,
        total.betrayals
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
    #[cfg(feature = "proof")]
    if !proof::tell_marks(&arguments) {
        return ExitCode::FAILURE;
    }
    if total.failures.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What only a build with mutants can do.
#[cfg(feature = "proof")]
mod proof {
    use super::Arguments;
    use sim::config::Config;
    use sim::hunt::{Bounds, hunt, quarter, rate};
    use std::process::ExitCode;
    use std::time::Instant;
    use trilith_block::mark::count;
    use trilith_block::{Mark, Mutant};

    /// Marks that a thousand seeds may miss: tests of the crates meet them (docs/verification.md).
    const SELDOM: &[Mark] = &[
        Mark::UnionFromOne,
        Mark::UnionFromTwo,
        Mark::TaintedBase,
        Mark::RecoveryReadElsewhere,
        Mark::OtherBase,
        Mark::CalledBack,
        Mark::SplitVote,
        Mark::VoteOvertaken,
        Mark::DemotedWhileJoining,
        Mark::LostBeforeOpen,
        Mark::LossHandedOn,
        Mark::CopyFailed,
        Mark::ScrubTouched,
        Mark::NoRoom,
        Mark::FlushFailed,
        Mark::KilledBeforeReset,
        Mark::KilledBeforeMarker,
    ];

    /// Marks of volumes with a witness: of seeds with one they must be hit, and no others.
    const OF_WITNESS: &[Mark] = &[
        Mark::LoneEpoch,
        Mark::LeftBehindWaits,
        Mark::GoesOnAlone,
        Mark::InForceByTelling,
        Mark::ShrunkBeforeOpened,
        Mark::OpenedWithoutWitness,
    ];

    /// The mutant of a name.
    pub(crate) fn named(name: &str) -> Result<Mutant, String> {
        let known = || {
            let names: Vec<&str> = Mutant::ALL.iter().map(|m| m.name()).collect();
            format!("no mutant {name}; there are {}", names.join(" "))
        };
        let found = Mutant::ALL.iter().find(|m| m.name() == name);
        found.copied().ok_or_else(known)
    }

    /// Names the coverage marks that were not hit; with `--trace` tells how often each was. False: one
    /// that `--marks` demands was not.
    pub(crate) fn tell_marks(arguments: &Arguments) -> bool {
        let with_witness = Config::from_seed(arguments.from).witness;
        let (mut missed, mut wrong) = (0, 0);
        for mark in Mark::ALL {
            let count = count(*mark);
            let rare = SELDOM.contains(mark) || OF_WITNESS.contains(mark) != with_witness;
            if count == 0 || arguments.trace {
                let note = if rare { " (seldom)" } else { "" };
                println!("{count:9} times {mark:?}{note}: {}", mark.text());
            }
            missed += usize::from(count == 0);
            wrong += usize::from(count == 0 && !rare);
        }
        let all = Mark::ALL.len();
        println!("{missed} of {all} coverage marks not hit, {wrong} of them must be");
        wrong == 0 || !arguments.marks
    }

    /// Looks for every mutant, or for those of a quarter, and prints a table.
    pub(crate) fn hunt_all(arguments: &Arguments) -> ExitCode {
        // Their panics are what is looked for.
        std::panic::set_hook(Box::new(|_| {}));
        let bounds = Bounds {
            from: arguments.from,
            seeds: arguments.seeds,
            jobs: arguments.jobs,
        };
        let mut survivors = Vec::new();
        let mut chosen = arguments.only.clone();
        if chosen.is_empty() {
            chosen = quarter(arguments.quarter);
        }
        chosen.retain(|mutant| !arguments.except.contains(mutant));
        for mutant in chosen {
            let begun = Instant::now();
            if arguments.rates {
                let rate = rate(mutant, bounds);
                let seconds = begun.elapsed().as_secs_f64();
                let (events, seed, what) = rate.cheapest.unwrap_or_default();
                let what = what.chars().take(90).collect::<String>();
                println!(
                    "{:24} {:5} of {} seeds, {seconds:5.1} s; {seed} in {events} events: {what}",
                    mutant.name(),
                    rate.failures,
                    arguments.seeds,
                );
                continue;
            }
            let catch = hunt(mutant, bounds);
            let seconds = begun.elapsed().as_secs_f64();
            match catch {
                Some(catch) => println!(
                    "{:24} found by seed {}, the {}. tried, {seconds:5.1} s: {}",
                    mutant.name(),
                    catch.seed,
                    catch.seeds,
                    catch.what.chars().take(100).collect::<String>()
                ),
                None => {
                    let seeds = arguments.seeds;
                    println!(
                        "{:24} SURVIVED {seeds} seeds, {seconds:5.1} s",
                        mutant.name()
                    );
                    survivors.push(mutant);
                }
            }
        }
        for mutant in &survivors {
            println!("{} is not noticed: {}", mutant.name(), mutant.rule());
        }
        if survivors.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
