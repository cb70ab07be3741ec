//! Mutual challenge and response of a session (M24): HMAC-SHA-256 over both nonces and all
//! identities with the volume's secret. It proves that both ends hold the secret; frames after it
//! are not authenticated one by one.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use trilith_block::Uuid;

/// A volume's secret.
pub type Secret = [u8; 32];
/// A random number used once.
pub type Nonce = [u8; 32];
/// Proof of the secret.
pub type Proof = [u8; 32];

/// Which end proves itself; keeps one end's proof from being replayed as the other's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// The engine, in AUTH.
    Engine,
    /// The replica, in CHALLENGE.
    Replica,
}

/// What both ends bind their proofs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The engine's nonce, from HELLO.
    pub engine_nonce: Nonce,
    /// The replica's nonce, from CHALLENGE.
    pub replica_nonce: Nonce,
    /// The volume.
    pub volume: Uuid,
    /// The engine.
    pub engine: Uuid,
    /// The replica.
    pub replica: Uuid,
    /// The protocol version agreed on.
    pub protocol: u16,
}

fn mac(secret: &Secret, role: Role, binding: &Binding) -> Option<Hmac<Sha256>> {
    let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(secret).ok()?;
    mac.update(match role {
        Role::Engine => b"trilith engine",
        Role::Replica => b"trilith replica",
    });
    mac.update(&binding.engine_nonce);
    mac.update(&binding.replica_nonce);
    mac.update(&binding.volume.0);
    mac.update(&binding.engine.0);
    mac.update(&binding.replica.0);
    mac.update(&binding.protocol.to_le_bytes());
    Some(mac)
}

/// The proof that `role` sends.
pub fn proof(secret: &Secret, role: Role, binding: &Binding) -> Proof {
    // HMAC takes keys of any length, so there always is one.
    mac(secret, role, binding).map_or([0; 32], |mac| mac.finalize().into_bytes().into())
}

/// True when `found` is what `role` must send. Takes the same time whatever it holds.
pub fn verify(secret: &Secret, role: Role, binding: &Binding, found: &Proof) -> bool {
    mac(secret, role, binding).is_some_and(|mac| mac.verify_slice(found).is_ok())
}
