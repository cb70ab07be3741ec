//! How large the worlds are, and which rules can be left out.

use crate::state::Mask;

/// What may still happen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Given {
    /// Engines that are started.
    pub engines: u8,
    /// Writes of the client.
    pub writes: u8,
    /// Replacements that are begun.
    pub changes: u8,
    /// Newcomers that are given up while they learn.
    pub give_ups: u8,
    /// Sessions that are cut.
    pub cuts: u8,
    /// Disks that are emptied.
    pub wipes: u8,
}

/// The bounds of a world.
#[derive(Clone, Copy, Debug)]
pub struct Scope {
    /// Its name.
    pub name: &'static str,
    /// The voters that the volume is made with; all others are newcomers.
    pub voters: Mask,
    /// What may happen.
    pub given: Given,
    /// Two engines may campaign in one term.
    pub duel: bool,
}

/// A rule of C20 left out, or one that it leans on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// In a joint configuration the old voters decide alone.
    JointIgnored,
    /// The last step does not wait for the barrier behind the joint one.
    NoBarrier,
    /// An empty replica has a say (T18).
    BlankHeard,
    /// The joint step does not wait until the newcomer counts.
    NewcomerNotWaitedFor,
    /// A vote is given whatever the engine knows of the configuration, and the engine goes by what
    /// it was started with.
    ConfigNotAsked,
    /// Who leaves is told before the last step is in force.
    RetiredEarly,
}

impl Fault {
    /// All, each with the world that finds it.
    pub fn all() -> Vec<(Fault, Scope)> {
        vec![
            (Fault::JointIgnored, Scope::write()),
            (Fault::NoBarrier, Scope::write()),
            (Fault::BlankHeard, Scope::emptied()),
            (Fault::NewcomerNotWaitedFor, Scope::single()),
            (Fault::ConfigNotAsked, Scope::write()),
            (Fault::RetiredEarly, Scope::single()),
        ]
    }
}

impl Scope {
    fn new(name: &'static str, voters: Mask, given: Given) -> Scope {
        Scope {
            name,
            voters,
            given,
            duel: false,
        }
    }

    /// One of three is replaced or given up, and an engine takes over at any step.
    pub fn replace() -> Scope {
        let given = Given {
            engines: 1,
            changes: 1,
            give_ups: 1,
            ..Given::default()
        };
        Scope::new("replace", 0b111, given)
    }

    /// The same with a write at any step.
    pub fn write() -> Scope {
        let given = Given {
            engines: 1,
            writes: 1,
            changes: 1,
            ..Given::default()
        };
        Scope::new("replace-write", 0b111, given)
    }

    /// The same with a session cut at any step.
    pub fn cut() -> Scope {
        let given = Given {
            engines: 1,
            changes: 1,
            cuts: 1,
            ..Given::default()
        };
        Scope::new("replace-cut", 0b111, given)
    }

    /// The same with a disk emptied at any step.
    pub fn wipe() -> Scope {
        let given = Given {
            engines: 1,
            changes: 1,
            wipes: 1,
            ..Given::default()
        };
        Scope::new("replace-wipe", 0b111, given)
    }

    /// A disk is emptied after a write; nobody is replaced.
    pub fn emptied() -> Scope {
        let given = Given {
            engines: 1,
            writes: 1,
            wipes: 1,
            ..Given::default()
        };
        Scope::new("emptied", 0b111, given)
    }

    /// The only replica is replaced, and the newcomer is replaced again.
    pub fn single() -> Scope {
        let given = Given {
            engines: 1,
            writes: 1,
            changes: 2,
            ..Given::default()
        };
        Scope::new("single", 0b1, given)
    }

    /// The only replica is replaced, while engines follow one another and a session is cut.
    pub fn single_cut() -> Scope {
        let given = Given {
            engines: 2,
            writes: 1,
            changes: 1,
            give_ups: 1,
            cuts: 1,
            ..Given::default()
        };
        Scope::new("single-cut", 0b1, given)
    }

    /// One of two is replaced or given up, while engines follow one another that may share a term.
    pub fn pair() -> Scope {
        let given = Given {
            engines: 2,
            changes: 1,
            give_ups: 1,
            ..Given::default()
        };
        let mut scope = Scope::new("pair", 0b11, given);
        scope.duel = true;
        scope
    }

    /// The worlds of the tests.
    pub fn small() -> Vec<Scope> {
        vec![Scope::replace(), Scope::emptied(), Scope::single()]
    }

    /// Larger worlds.
    pub fn medium() -> Vec<Scope> {
        let mut all = Scope::small();
        all.extend([
            Scope::write(),
            Scope::cut(),
            Scope::wipe(),
            Scope::single_cut(),
            Scope::pair(),
        ]);
        all
    }
}
