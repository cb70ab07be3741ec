//! Rot: pages that come to hold what nobody wrote, and what they would hold without it.

use super::{Disk, File, PAGE, Value, index};
use crate::entropy::Entropy;
use std::rc::Rc;

/// A page that holds what nobody wrote, as long as its durable value is this one.
#[derive(Debug)]
pub(super) struct Rot {
    rotten: Rc<[u8; PAGE]>,
    sound: Value,
}

impl Rot {
    fn is_at(&self, value: &Value) -> bool {
        value.as_ref().is_some_and(|v| Rc::ptr_eq(v, &self.rotten))
    }
}

impl Disk {
    /// One bit of a page is not what was written.
    pub fn rot(&mut self, file: File, page: usize, entropy: &mut Entropy) {
        let sound = match file {
            File::Data => self.sound(page).cloned(),
            File::Meta => None,
        };
        let slot = &mut self.images[index(file)].pages[page];
        let mut bytes = slot.current().as_ref().map_or([0; PAGE], |v| **v);
        bytes[entropy.index(PAGE)] ^= 1 << entropy.below(8);
        slot.volatile.clear();
        let rotten = Rc::new(bytes);
        slot.durable = Some(rotten.clone());
        if file == File::Data {
            self.rotted += 1;
            self.rotten.insert(page as u32, Rot { rotten, sound });
        }
    }

    /// Undoes the rot of a page of the data file, unless it was written since.
    pub fn cure(&mut self, page: usize) {
        if let Some(rot) = self.rotten.remove(&(page as u32)) {
            let slot = &mut self.images[index(File::Data)].pages[page];
            if rot.is_at(&slot.durable) {
                slot.durable = rot.sound;
            }
        }
    }

    /// Pages of the data file whose durable value is rotten.
    pub fn rotten_pages(&self) -> Vec<usize> {
        let pages = &self.images[index(File::Data)].pages;
        let live = |(page, rot): &(&u32, &Rot)| rot.is_at(&pages[**page as usize].durable);
        let rotten = self.rotten.iter().filter(live);
        rotten.map(|(page, _)| *page as usize).collect()
    }

    /// True when a read of this page of the data file finds what nobody wrote.
    pub fn is_rotten(&self, page: usize) -> bool {
        let value = self.images[index(File::Data)].pages.get(page);
        let rot = self.rotten.get(&(page as u32));
        rot.zip(value).is_some_and(|(r, v)| r.is_at(v.current()))
    }

    /// What would be there if it had not rotted.
    pub(super) fn unrotten<'a>(
        &'a self,
        page: usize,
        value: &'a Value,
    ) -> Option<&'a Rc<[u8; PAGE]>> {
        match self.rotten.get(&(page as u32)) {
            Some(rot) if rot.is_at(value) => rot.sound.as_ref(),
            Some(_) | None => value.as_ref(),
        }
    }

    /// What a read of a page of the data file would find if nothing had rotted; `None`: zeroes.
    pub(super) fn sound(&self, page: usize) -> Option<&Rc<[u8; PAGE]>> {
        let slot = self.images[index(File::Data)].pages.get(page)?;
        self.unrotten(page, slot.current())
    }

    /// The bytes of a page of the data file, as if nothing had rotted.
    pub fn sound_page(&self, page: usize) -> [u8; PAGE] {
        self.sound(page).map_or([0; PAGE], |bytes| **bytes)
    }
}
