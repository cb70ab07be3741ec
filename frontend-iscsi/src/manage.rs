//! Task management (RFC 7143 11.5, 11.6) and PERSISTENT RESERVE OUT, which manages tasks too.

use crate::limits::TASK_MANAGEMENT_MAX;
use crate::pdu::{Bhs, flag, opcode, reason};
use crate::scsi::reserve::{Effects, Refusal};
use crate::scsi::sense::{Sense, attention, status};
use crate::target::{IscsiTarget, Out};
use crate::task::Failure;
use alloc::vec::Vec;
use trilith_block::Buffers;

/// Functions.
mod function {
    pub(super) const ABORT_TASK: u8 = 1;
    pub(super) const ABORT_TASK_SET: u8 = 2;
    pub(super) const CLEAR_TASK_SET: u8 = 4;
    pub(super) const UNIT_RESET: u8 = 5;
    pub(super) const WARM_RESET: u8 = 6;
    pub(super) const COLD_RESET: u8 = 7;
    pub(super) const REASSIGN: u8 = 8;
}

/// Responses.
mod answer {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_TASK: u8 = 1;
    pub(super) const NO_UNIT: u8 = 2;
    pub(super) const NO_REASSIGN: u8 = 4;
    pub(super) const NOT_SUPPORTED: u8 = 5;
}

/// A function that waits until the tasks that it has aborted are gone.
#[derive(Debug)]
pub(crate) struct Managing {
    pub(crate) slot: usize,
    itt: u32,
    /// Task slots with their generations.
    tasks: Vec<(usize, u32)>,
    /// All connections are closed after the answer.
    cold: bool,
    /// It is PREEMPT AND ABORT, a task itself.
    task: Option<(usize, u32)>,
}

impl IscsiTarget {
    /// A Task Management Function Request.
    pub(crate) fn manage(&mut self, slot: usize, data: &mut dyn Buffers, out: &mut Out) {
        let head = self.conns[slot].head;
        let waiting = self
            .managing
            .iter()
            .filter(|managing| managing.slot == slot);
        if waiting.count() >= TASK_MANAGEMENT_MAX {
            self.reject(slot, reason::TOO_MANY_IMMEDIATE, data, out);
            return;
        }
        let what = head.flags() & 0x7f;
        let of_unit = matches!(
            what,
            function::ABORT_TASK
                | function::ABORT_TASK_SET
                | function::CLEAR_TASK_SET
                | function::UNIT_RESET
        );
        if of_unit && !self.holds_unit(head.lun()) {
            self.managed(slot, head.itt(), answer::NO_UNIT, data, out);
            return;
        }
        let all = |slots: Vec<usize>, this: &IscsiTarget| -> Vec<usize> {
            let tasks = slots.iter().flat_map(|slot| this.conns[*slot].tasks.iter());
            tasks.map(|(_, t)| *t).collect()
        };
        let victims = match what {
            function::ABORT_TASK => match self.conns[slot].task(head.word20()) {
                Some(t) => Vec::from([t]),
                None => {
                    self.managed(slot, head.itt(), answer::NO_TASK, data, out);
                    return;
                }
            },
            // Every initiator port has a task set of its own (control mode page, TST).
            function::ABORT_TASK_SET | function::CLEAR_TASK_SET => all(Vec::from([slot]), self),
            function::UNIT_RESET | function::WARM_RESET | function::COLD_RESET => {
                self.reset_unit();
                all(self.sessions(), self)
            }
            function::REASSIGN => {
                self.managed(slot, head.itt(), answer::NO_REASSIGN, data, out);
                return;
            }
            // CLEAR ACA among them: there is no ACA.
            _ => {
                self.managed(slot, head.itt(), answer::NOT_SUPPORTED, data, out);
                return;
            }
        };
        let tasks = victims
            .iter()
            .map(|t| (*t, self.tasks[*t].generation))
            .collect();
        self.managing.push(Managing {
            slot,
            itt: head.itt(),
            tasks,
            cold: what == function::COLD_RESET,
            task: None,
        });
        for t in victims {
            self.abort(t, data, out);
        }
        self.end_managing(data, out);
    }

    /// The unit is as after power on; its initiators are told.
    fn reset_unit(&mut self) {
        self.disk.reset();
        for conn in self.conns.iter_mut().filter(|conn| conn.is_session()) {
            conn.attend(attention::TARGET_RESET);
        }
    }

    /// A task is gone: functions that wait for it may be done.
    pub(crate) fn task_gone(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if self.managing.is_empty() {
            return;
        }
        for managing in &mut self.managing {
            managing.tasks.retain(|(other, _)| *other != t);
        }
        self.end_managing(data, out);
    }

    /// Answers the functions that wait for nothing any more.
    fn end_managing(&mut self, data: &mut dyn Buffers, out: &mut Out) {
        while let Some(at) = self.managing.iter().position(|m| self.is_over(m)) {
            let done = self.managing.remove(at);
            if let Some((t, generation)) = done.task {
                if self.tasks[t].generation == generation {
                    self.tasks[t].fencing = false;
                    self.end_if_over(t, data, out);
                }
                continue;
            }
            self.managed(done.slot, done.itt, answer::COMPLETE, data, out);
            if done.cold {
                // RFC 7143 11.5.1: TARGET COLD RESET ends all sessions.
                for slot in self.sessions() {
                    self.close(slot, data, out);
                }
            }
        }
    }

    fn is_over(&self, managing: &Managing) -> bool {
        managing.tasks.iter().all(|(t, generation)| {
            !self.tasks[*t].active || self.tasks[*t].generation != *generation
        })
    }

    fn managed(
        &mut self,
        slot: usize,
        itt: u32,
        answer: u8,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        let head = Bhs::new(opcode::TASK_MANAGEMENT_RESPONSE, flag::FINAL)
            .with_byte(2, answer)
            .with32(16, itt);
        self.send(slot, head, true, &[], data, out);
    }

    /// Carries out PERSISTENT RESERVE OUT; the task may have to wait until the state is kept.
    pub(crate) fn reserve_out(
        &mut self,
        t: usize,
        action: u8,
        scope_type: u8,
        list: &[u8],
    ) -> Result<(), Failure> {
        let port = self.conns[self.tasks[t].slot].port.clone();
        let mut effects = Effects::default();
        let result = self
            .disk
            .reservations
            .out(&port, action, scope_type, list, &mut effects);
        result.map_err(|refusal| match refusal {
            Refusal::Conflict => Failure::Status(status::RESERVATION_CONFLICT),
            Refusal::Sense(sense) => Failure::Sense(sense),
        })?;
        for (port, code) in &effects.attentions {
            for conn in self.conns.iter_mut().filter(|conn| conn.is_session()) {
                if conn.port == *port {
                    conn.attend(*code);
                }
            }
        }
        let mut state = Vec::new();
        self.disk.reservations.to_bytes(&mut state);
        // A state that could not be kept is not kept by asking for it again.
        if state != self.kept || self.kept_lost {
            self.kept = state;
            self.kept_number += 1;
            self.tasks[t].keeping = Some(self.kept_number);
        }
        self.victims.extend(effects.aborted);
        Ok(())
    }

    /// State `number` is kept, or cannot be: the tasks that wait for it end.
    pub(crate) fn finish_keeping(
        &mut self,
        number: u64,
        ok: bool,
        data: &mut dyn Buffers,
        out: &mut Out,
    ) {
        for t in 0..self.tasks.len() {
            let task = &mut self.tasks[t];
            if task.active && task.keeping.is_some_and(|wanted| wanted <= number) {
                task.keeping = None;
                if !ok {
                    task.fail(Failure::Sense(Sense::STATE_NOT_KEPT));
                }
                self.end_if_over(t, data, out);
            }
        }
    }

    /// Aborts the tasks of ports that PREEMPT AND ABORT, task `t`, has named. It ends when they are
    /// gone: nothing that they write comes after its status.
    pub(crate) fn abort_victims(&mut self, t: usize, data: &mut dyn Buffers, out: &mut Out) {
        if self.victims.is_empty() {
            return;
        }
        let ports = core::mem::take(&mut self.victims);
        let mut victims = Vec::new();
        for conn in self.conns.iter().filter(|conn| ports.contains(&conn.port)) {
            let others = conn.tasks.iter().filter(|(_, other)| *other != t);
            victims.extend(others.map(|(_, other)| *other));
        }
        let tasks = victims
            .iter()
            .map(|t| (*t, self.tasks[*t].generation))
            .collect();
        self.tasks[t].fencing = true;
        self.managing.push(Managing {
            slot: self.tasks[t].slot,
            itt: 0,
            tasks,
            cold: false,
            task: Some((t, self.tasks[t].generation)),
        });
        for victim in victims {
            self.abort(victim, data, out);
        }
        self.end_managing(data, out);
    }
}
