//! Runs the checker.

use crate::model::{Action, Protocol};
use crate::scope::{Scope, Variant};
use crate::state::Violation;
use core::fmt::Debug;
use core::hash::Hash;
use stateright::{Checker, HasDiscoveries, Model};

/// What came out.
#[derive(Clone, Debug)]
pub struct Report<A = Action> {
    /// Different states seen.
    pub states: usize,
    /// Steps taken.
    pub steps: usize,
    /// Length of the longest shortest history.
    pub depth: usize,
    /// Every state of the world was seen.
    pub exhausted: bool,
    /// Broken properties, each with its history.
    pub broken: Vec<(&'static str, Vec<A>)>,
}

/// Explores a world to its end, or to the first broken property.
pub fn check(scope: Scope, variant: Variant) -> Report {
    explore(of(scope, variant), HasDiscoveries::AnyFailures)
}

/// Explores a world until one of these is broken.
pub fn find(scope: Scope, variant: Variant, wanted: &[Violation]) -> Report {
    let wanted = wanted.iter().map(|v| v.name()).collect();
    explore(of(scope, variant), HasDiscoveries::AnyOf(wanted))
}

fn of(scope: Scope, variant: Variant) -> Protocol {
    Protocol {
        scope,
        variant,
        symmetry: true,
    }
}

/// Explores any world to its end, or until what is asked for has been found.
pub(crate) fn explore<M>(world: M, until: HasDiscoveries) -> Report<M::Action>
where
    M: Model + Send + Sync + 'static,
    M::State: Clone + Debug + Hash + PartialEq + Send + Sync + 'static,
    M::Action: Clone + Debug + PartialEq + Send + Sync,
{
    let builder = world.checker().threads(1).finish_when(until);
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
