//! The size of the world. All of it is deliberately tiny: what a rule needs to go wrong is small.

/// Replicas, all of them voters.
pub const REPLICAS: usize = 3;

/// Members that make a majority.
pub const MAJORITY: u32 = 2;

/// Blocks of the volume. Each is a chunk of its own, for the maps of the protocol have no finer unit.
pub const BLOCKS: usize = 2;

/// Values that a block can have: 0 and one for each write. A set of them is one byte.
pub const VALUES_MAX: u8 = 8;

/// Members of the worlds in which voters are replaced: three voters and two newcomers.
pub const MEMBERS: usize = 5;

/// Engines of one history at most.
pub const ENGINES_MAX: usize = 4;
