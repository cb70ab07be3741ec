//! Fetching a member's maps after its promise (GETMAP): all of them for a recovery; window,
//! activity log and need for a member that comes later. A witness has none (7.1, W1).

use crate::engine::{Cx, Engine};
use crate::limits::WINDOW_SLOTS;
use crate::peer::{MapOwner, MapPiece, Survey};
use trilith_block::{BufSlice, ChunkMap, ExtentNo, MemberId};
use trilith_wire::{ChunkRecord, MapKind, Message, WindowRecord};

impl Engine {
    /// Starts to fetch the maps of a member that has just promised.
    pub(crate) fn start_survey(&mut self, member: MemberId, cx: &mut Cx<'_>) {
        let peer = &mut self.peers[member.index()];
        let Some(state) = peer.state else { return };
        let promise = Engine::blank_promise(member, state);
        peer.survey = Some(Survey {
            promise,
            step: 0,
            from: 0,
            done: false,
        });
        self.survey_next(member, 0, cx);
    }

    /// Which map a step fetches.
    fn survey_step(&self, member: MemberId, step: usize) -> Option<(MapKind, MemberId)> {
        match step {
            _ if self.membership.witness.contains(member) => None,
            0 => Some((MapKind::Window, member)),
            1 => Some((MapKind::ActivityLog, member)),
            2 => Some((MapKind::Need, member)),
            // What others lack is told by in-sync members only; a late one has nothing to say.
            _ if self.open => None,
            _ => {
                let holders = self.members.minus(self.membership.witness);
                let mut others = holders.without(member).iter();
                others.nth(step - 3).map(|other| (MapKind::Dirty, other))
            }
        }
    }

    /// Asks for the next piece of the current step. False: GETMAP is in use; try again.
    fn survey_next(&mut self, member: MemberId, from: u64, cx: &mut Cx<'_>) {
        let peer = &self.peers[member.index()];
        let Some(step) = peer.survey.as_ref().map(|s| s.step) else {
            return;
        };
        let Some((map, of)) = self.survey_step(member, step) else {
            if let Some(survey) = self.peers[member.index()].survey.as_mut() {
                survey.done = true;
            }
            self.survey_done(member);
            return;
        };
        // Only dirty maps are some member's; the others name member 0 on the wire.
        let of = if map == MapKind::Dirty {
            Some(of)
        } else {
            MemberId::new(0)
        };
        let Some(of) = of else { return };
        if let Some(survey) = self.peers[member.index()].survey.as_mut() {
            survey.from = from;
        }
        self.peers[member.index()].map_owner = Some(MapOwner::Survey);
        let ask = Message::GetMap {
            term: self.term,
            map,
            member: of,
            from,
        };
        self.send(member, &ask, None, cx);
    }

    /// A MAP has come, its checksum is right. The buffer stays the caller's.
    pub(crate) fn map_arrived(
        &mut self,
        member: MemberId,
        piece: MapPiece,
        buf: Option<BufSlice>,
        cx: &mut Cx<'_>,
    ) {
        match self.peers[member.index()].map_owner.take() {
            None => self.drop_session(member, cx),
            Some(MapOwner::Survey) => self.survey_piece(member, piece, buf, cx),
            Some(MapOwner::Status { op }) => self.status_map(op, buf, piece, cx),
            Some(MapOwner::Room { extent }) => self.room_map(extent, buf, cx),
            Some(MapOwner::Newcomer) => self.newcomer_map(member, piece, buf, cx),
        }
    }

    fn survey_piece(
        &mut self,
        member: MemberId,
        piece: MapPiece,
        buf: Option<BufSlice>,
        cx: &mut Cx<'_>,
    ) {
        let extents = ExtentNo::count_for(self.capacity);
        let Some(step) = self.peers[member.index()].survey.as_ref().map(|s| s.step) else {
            return;
        };
        let Some((map, of)) = self.survey_step(member, step) else {
            return;
        };
        let bytes = buf.map_or(&[][..], |b| cx.data.bytes(b));
        let Some(survey) = self.peers[member.index()].survey.as_mut() else {
            return;
        };
        let from = survey.from;
        let promise = &mut survey.promise;
        let whose = map != MapKind::Dirty || of == piece.of;
        let sound = map == piece.map
            && whose
            && match map {
                MapKind::Window => {
                    let room = usize::try_from(2 * WINDOW_SLOTS).unwrap_or(usize::MAX);
                    WindowRecord::decode_all(bytes).all(|record| match record {
                        Some(record) if promise.window.len() < room => {
                            promise.window.push(record);
                            true
                        }
                        Some(_) | None => false,
                    })
                }
                MapKind::ActivityLog => add_records(&mut promise.al, bytes, extents),
                MapKind::Need => add_records(&mut promise.need, bytes, extents),
                MapKind::Dirty => add_records(promise.dirty.get_mut(of), bytes, extents),
                MapKind::Allocated | MapKind::Limbo => false,
            };
        // Each piece must get on, or a broken replica could keep this up for ever.
        let progress = piece.last || (!bytes.is_empty() && from < piece.next);
        if !sound || !progress {
            return self.drop_session(member, cx);
        }
        if piece.last {
            survey.step += 1;
            self.survey_next(member, 0, cx);
        } else {
            self.survey_next(member, piece.next, cx);
        }
    }
}

/// Adds chunk records to a map; false when one lies outside the volume.
pub(crate) fn add_records(map: &mut ChunkMap, bytes: &[u8], extents: u32) -> bool {
    ChunkRecord::decode_all(bytes).all(|record| {
        if record.extent.0 < extents {
            map.add_mask(record.extent, record.mask);
            true
        } else {
            false
        }
    })
}
