//! Whom a policy asks for approvals: who may look at what is held, and whose yes may count.

use crate::{
    Policy,
    facts::Identity,
    rule::{Requirement, Then},
};

impl Policy {
    /// Whether any rule asks a group for approvals that this identity belongs to.
    pub fn may_approve(&self, identity: &Identity<'_>) -> bool {
        let mut asked = false;
        for rule in &self.rules {
            let Then::Require(requirement) = &rule.then else { continue };
            requirement.walk(&mut |part| {
                if let Requirement::Approvals { from, .. } = part {
                    asked |= from.has(identity.name, identity.groups);
                }
            });
        }
        asked
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_of_the_groups_that_rules_ask() {
        let text = "version = 1\ncache = \"main\"\n[groups]\ncore = [\"alice\", \"bob\"]\nidle = [\"carol\"]\nsecurity = \"enrolled\"\n\
                    [[rule]]\nname = \"a\"\nmatch = {}\n\
                    require = { all = [\"derivation\", { any = [{ approvals = 1, from = \"core\" }, { approvals = 2, from = \"security\" }] }] }\n";
        let policy = Policy::parse(text, "main.toml", "main").unwrap();
        let may = |name: &str, groups: &[&str]| {
            let groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
            policy.may_approve(&Identity { name, owner: None, groups: &groups })
        };
        assert!(may("alice", &[]) && may("bob", &["idle"]) && may("dora", &["security"]));
        // a group that the file lists has the members that the file lists
        assert!(!may("carol", &[]) && !may("eve", &["core"]));
    }
}
