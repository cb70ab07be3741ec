//! Frames that are not entries and may carry maps, in their order with the entries.

use crate::engine::{Cx, Engine};
use crate::peer::Control;
use trilith_block::mark::{self, Mark};
use trilith_block::mutant::{self, Mutant};
use trilith_block::{BufSlice, Buffers, ChunkMap, ExtentNo, Idx, MemberId};
use trilith_wire::limits::MAP_BYTES_MAX;
use trilith_wire::{ChunkRecord, Message};

impl Control {
    /// It may be sent when the next entry is `cursor`.
    pub(crate) fn is_due(&self, cursor: Idx) -> bool {
        match self {
            Control::Clear { after, .. } => *after < cursor,
            Control::Message(_) | Control::Chunks { .. } => true,
        }
    }
}

/// Encodes one piece of a map from `from` on. `None`: no buffer now. Else the buffer (none for an
/// empty piece) and where the next piece starts.
fn piece(
    map: &ChunkMap,
    from: ExtentNo,
    data: &mut dyn Buffers,
) -> Option<(Option<BufSlice>, Option<ExtentNo>)> {
    let most = MAP_BYTES_MAX as usize / ChunkRecord::BYTES;
    let count = map.iter_from(from).take(most).count();
    if count == 0 {
        return Some((None, None));
    }
    let buf = data.alloc(u32::try_from(count * ChunkRecord::BYTES).ok()?)?;
    let bytes = data.bytes_mut(buf);
    let mut records = map.iter_from(from);
    for (out, (extent, mask)) in bytes.chunks_exact_mut(ChunkRecord::BYTES).zip(&mut records) {
        ChunkRecord { extent, mask }.encode(out);
    }
    Some((
        Some(buf),
        map.iter_from(from).nth(count).map(|(extent, _)| extent),
    ))
}

impl Engine {
    /// Sends the first queued frame, or a piece of it. False: try again later.
    pub(crate) fn send_control(&mut self, member: MemberId, cx: &mut Cx<'_>) -> bool {
        let Some(control) = self.peers[member.index()].control.pop_front() else {
            return true;
        };
        let term = self.term;
        let (map, from) = match &control {
            Control::Message(message) => {
                self.send(member, message, None, cx);
                return true;
            }
            Control::Chunks { map, from, .. } | Control::Clear { map, from, .. } => (map, *from),
        };
        let Some((buf, next)) = piece(map, from, cx.data) else {
            self.peers[member.index()].control.push_front(control);
            self.starved = true;
            return false;
        };
        let Some(buf) = buf else { return true };
        let crc = cx.data.crc32c(0, cx.data.bytes(buf));
        let message = match &control {
            Control::Clear { of, .. } => Message::DirtyClear {
                term,
                member: *of,
                crc,
            },
            Control::Chunks { kind, of, .. } => Message::Map {
                term,
                map: *kind,
                member: *of,
                last: next.is_none(),
                next: next.map_or(0, |n| u64::from(n.0)),
                crc,
            },
            Control::Message(message) => *message,
        };
        self.send(member, &message, Some(buf), cx);
        cx.data.release(buf.buf);
        if let Some(next) = next {
            let rest = match control {
                Control::Chunks { map, kind, of, .. } => Control::Chunks {
                    map,
                    kind,
                    of,
                    from: next,
                },
                Control::Clear { map, of, after, .. } => Control::Clear {
                    map,
                    of,
                    from: next,
                    after,
                },
                Control::Message(message) => Control::Message(message),
            };
            self.peers[member.index()].control.push_front(rest);
        }
        true
    }

    /// DIRTYCLEAR of `map` to the in-sync members and the member itself. It comes after every entry
    /// issued so far, so that none of those sets a bit again that it clears.
    pub(crate) fn send_clear(&mut self, of: MemberId, map: &ChunkMap, cx: &mut Cx<'_>) {
        if map.is_empty() {
            return;
        }
        let after = self.last_idx();
        for member in self.sync.iss.with(of).iter() {
            let peer = &mut self.peers[member.index()];
            if peer.is_ours() && peer.fed {
                let from = ExtentNo(0);
                peer.control.push_back(Control::Clear {
                    map: map.clone(),
                    of,
                    from,
                    after,
                });
                self.pump(member, cx);
            } else if member != of {
                mark::reached(Mark::ClearOwed);
                peer.owed.get_mut(of).union(map);
            }
        }
    }

    /// DIRTYCLEARs that a member missed, but for what `of` has come to lack again since (C45).
    pub(crate) fn send_owed(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let after = self.last_idx();
        for of in self.members.without(member).iter() {
            let peer = &mut self.peers[member.index()];
            let mut map = core::mem::take(peer.owed.get_mut(of));
            if !mutant::on(Mutant::OwedWhateverCame) {
                map.subtract(&self.absent[of.index()]);
                map.subtract(&self.uncleared[of.index()]);
            }
            if !map.is_empty() {
                peer.control.push_back(Control::Clear {
                    map,
                    of,
                    from: ExtentNo(0),
                    after,
                });
            }
        }
        self.pump(member, cx);
    }
}
