//! Reads what verifiers are asked for beside what rules require: `[rebuilds]` and `[[build]]`.

use super::{
    head, matches,
    problem::Problems,
    tree::{self, Table, Value},
};
use crate::{
    builds::BuildLimits,
    rebuilds::{MAX_CONFIRM, OnAuditMismatch, Rebuilds},
    rule::Group,
};

/// Fields of `[rebuilds]`.
pub(crate) const REBUILDS: &[&str] = &["confirm", "audit-per-day", "on-audit-mismatch"];
/// Fields of `[[build]]`.
pub(crate) const BUILD: &[&str] = &["submitter", "system", "at-once", "per-day", "time", "log"];
/// Words of `on-audit-mismatch`.
pub(crate) const ON_AUDIT_MISMATCH: &[(&str, OnAuditMismatch)] = &[
    (OnAuditMismatch::Mark.word(), OnAuditMismatch::Mark),
    (OnAuditMismatch::Withdraw.word(), OnAuditMismatch::Withdraw),
];

pub(crate) fn rebuilds(value: &Value<'_>, problems: &mut Problems) -> Option<Rebuilds> {
    let table = Table::of(value, "`[rebuilds]`", REBUILDS, problems)?;
    let default = Rebuilds::default();
    let confirm = table.read("confirm", problems, |value, problems| {
        let confirm = tree::number(value, 0, problems)?;
        if confirm > MAX_CONFIRM {
            problems.error(value.span(), format!("at most {MAX_CONFIRM} confirmations can be asked for"));
        }
        Some(confirm)
    });
    let audits = table.read("audit-per-day", problems, |value, problems| tree::number(value, 0, problems));
    let on_audit_mismatch = table.read("on-audit-mismatch", problems, |value, problems| {
        tree::word(value, ON_AUDIT_MISMATCH, problems)
    });
    Some(Rebuilds {
        confirm: confirm.unwrap_or(default.confirm),
        audit_per_day: audits.unwrap_or(default.audit_per_day),
        on_audit_mismatch: on_audit_mismatch.unwrap_or(default.on_audit_mismatch),
    })
}

pub(crate) fn builds(file: &Table<'_, '_>, groups: &[Group], problems: &mut Problems) -> Vec<BuildLimits> {
    let values = file.tables("build", problems);
    values.into_iter().filter_map(|value| build(value, groups, problems)).collect()
}

fn build(value: &Value<'_>, groups: &[Group], problems: &mut Problems) -> Option<BuildLimits> {
    let table = Table::of(value, "`[[build]]`", BUILD, problems)?;
    let submitter = table.need("submitter", problems).and_then(|value| head::people(value, groups, problems));
    let system = table.read("system", problems, matches::systems);
    let number = |key, problems: &mut Problems| {
        table.read(key, problems, |value, problems| tree::number(value, 1, problems))
    };
    let at_once = number("at-once", problems);
    let per_day = number("per-day", problems);
    let time = table.read("time", problems, |value, problems| {
        let time = tree::duration(value, problems)?;
        if time == 0 {
            problems.error(value.span(), "no build ends in no time; who may not build has no `[[build]]`");
        }
        Some(time)
    });
    let log = table.read("log", problems, tree::size);
    let (names, groups) = submitter?;
    Some(BuildLimits {
        names,
        groups,
        system,
        at_once: at_once.unwrap_or(BuildLimits::AT_ONCE),
        per_day: per_day.unwrap_or(BuildLimits::PER_DAY),
        time: time.unwrap_or(BuildLimits::TIME),
        log: log.unwrap_or(BuildLimits::LOG),
    })
}
