//! Runs the checker.

use crate::model::{Action, Protocol};
use crate::scope::{Scope, Variant};
use crate::state::Violation;
use stateright::{Checker, HasDiscoveries, Model};

/// What came out.
#[derive(Clone, Debug)]
pub struct Report {
    /// Different states seen.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    /// Length of the longest shortest history.
    pub depth: usize,
    /// Every state of the world was seen.
    pub exhausted: bool,
    /// Broken properties, each with its history.
    pub broken: Vec<(&'static str, Vec<Action>)>,
}

/// Explores a world to its end, or to the first broken property.
pub fn check(scope: Scope, variant: Variant) -> Report {
    run(scope, variant, HasDiscoveries::AnyFailures)
}

/// Explores a world until one of these is broken.
pub fn find(scope: Scope, variant: Variant, wanted: &[Violation]) -> Report {
    let wanted = wanted.iter().map(|v| v.name()).collect();
    run(scope, variant, HasDiscoveries::AnyOf(wanted))
}

fn run(scope: Scope, variant: Variant, until: HasDiscoveries) -> Report {
    let protocol = Protocol {
        scope,
        variant,
        symmetry: true,
    };
    let builder = protocol.checker().threads(1).finish_when(until);
    let checker = builder.spawn_bfs().join();
    let broken: Vec<_> = checker
        .discoveries()
        .into_iter()
        .map(|(name, path)| (name, path.into_actions()))
        .collect();
    Report {
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        exhausted: broken.is_empty() && checker.is_done(),
        broken,
    }
}
