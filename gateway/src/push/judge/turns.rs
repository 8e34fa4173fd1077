//! Whose push is judged next: owners take turns, and the pushes of one stand in the order that they were reported in.

use std::collections::{HashMap, VecDeque};

/// Pushes that wait to be judged.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// Who has something waiting; the next in turn is in front.
    order: VecDeque<String>,
    pushes: HashMap<String, VecDeque<String>>,
}

impl Turns {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    pub(super) fn add(&mut self, owner: String, push: String) {
        let pushes = self.pushes.entry(owner.clone()).or_default();
        if pushes.is_empty() {
            self.order.push_back(owner);
        }
        pushes.push_back(push);
    }

    /// The next ones, at most so many: one of each owner, and again from the start while there is room.
    pub(super) fn next(&mut self, most: usize) -> Vec<String> {
        let mut next = Vec::new();
        while next.len() < most
            && let Some(owner) = self.order.pop_front()
        {
            let Some(pushes) = self.pushes.get_mut(&owner) else { continue };
            next.extend(pushes.pop_front());
            if pushes.is_empty() {
                self.pushes.remove(&owner);
            } else {
                self.order.push_back(owner);
            }
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_one_does_not_go_before_another() {
        let mut turns = Turns::default();
        for n in 0..1000 {
            turns.add("flood".into(), format!("f{n}"));
        }
        turns.add("alice".into(), "a0".into());
        turns.add("bob".into(), "b0".into());
        turns.add("bob".into(), "b1".into());
        assert_eq!(turns.next(4), ["f0", "a0", "b0", "f1"]);
        // who had his turn stands at the end
        turns.add("alice".into(), "a1".into());
        assert_eq!(turns.next(3), ["b1", "f2", "a1"]);
        assert_eq!(turns.next(2), ["f3", "f4"]);
        let mut rest = 0;
        while !turns.is_empty() {
            rest += turns.next(64).len();
        }
        assert_eq!(rest, 995);
    }
}
