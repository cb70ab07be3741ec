//! Makes a failing run smaller: drops faults and requests while it still fails in the same way.
//! The plan of faults is a list made before the run, so leaving one out does not change the others.

use crate::config::Config;
use crate::entropy::Entropy;
use crate::run::run;
use crate::story::Detail;

/// Runs that a shrink may take.
const RUNS_MAX: usize = 300;

/// The kind of a failure: its first word.
pub fn kind(failure: &str) -> &str {
    failure.split([':', ' ']).next().unwrap_or("")
}

/// The smallest configuration found that fails as `config` does, and what it says.
pub fn shrink(config: &Config) -> (Config, String) {
    let mut runs = 0;
    let mut fails = |config: &Config| -> Option<String> {
        runs += 1;
        if runs > RUNS_MAX {
            return None;
        }
        let entropy = Entropy::from_seed(config.seed).fork(2);
        run(config.clone(), entropy, Detail::Off).failure
    };
    let mut best = config.clone();
    let Some(mut failure) = fails(&best) else {
        return (best, String::new());
    };
    let wanted = kind(&failure).to_string();
    loop {
        let mut smaller = None;
        for candidate in candidates(&best) {
            if let Some(found) = fails(&candidate).filter(|f| kind(f) == wanted) {
                smaller = Some((candidate, found));
                break;
            }
        }
        match smaller {
            Some((config, found)) => (best, failure) = (config, found),
            None => return (best, failure),
        }
    }
}

fn candidates(config: &Config) -> Vec<Config> {
    let mut list = Vec::new();
    let mut push = |change: &dyn Fn(&mut Config)| {
        let mut next = config.clone();
        change(&mut next);
        list.push(next);
    };
    let half = config.plan.len() / 2;
    if half > 0 {
        push(&|c| {
            c.plan.truncate(half);
        });
        push(&|c| {
            c.plan.drain(..half);
        });
    }
    for index in (0..config.plan.len()).rev() {
        push(&|c| {
            c.plan.remove(index);
        });
    }
    if config.mix.requests_max > 4 {
        push(&|c| c.mix.requests_max /= 2);
        push(&|c| c.mix.requests_max = c.mix.requests_max * 7 / 8);
    }
    if config.mix.clients > 1 {
        push(&|c| c.mix.clients -= 1);
    }
    if config.final_cut {
        push(&|c| c.final_cut = false);
    }
    if !config.dead.is_empty() {
        push(&|c| c.dead.clear());
    }
    if config.skew_ppm.iter().any(|s| *s != 0) {
        push(&|c| c.skew_ppm.iter_mut().for_each(|s| *s = 0));
    }
    if config.character.split + config.character.spike > 0 {
        push(&|c| (c.character.split, c.character.spike) = (0, 0));
    }
    if config.grants {
        push(&|c| c.grants = false);
    }
    if config.mix.fua + config.mix.unaligned + config.mix.long > 0 {
        push(&|c| (c.mix.fua, c.mix.unaligned, c.mix.long) = (0, 0, 0));
    }
    list
}
