//! Which batch an upload belongs to.
//!
//! A window is *closed* when its batch was sealed or carried away, or when its end + deadline has passed, whether or
//! not it ever had an upload; it never opens again. An upload whose window is closed, or whose label has a sealed part,
//! is *late*; so is one that would open a batch when the pool has as many as it may. Some places are left free by windows before
//! that of now, so that what comes from another time does not keep out what comes on time, and by the labels of a member who has
//! opened many, so that labels which one member invents do not keep out those of others.

use millpond_protocol::{Timestamp, limits};

use super::batches::Batches;
use super::policy::{Grouping, Late, Policy};
use super::pool::Pool;
use super::{Fact, Group, MemberId, Rejection, Reply, Rule, Upload};

/// Open batches up to which those are opened that leave the last places to others.
const GIVING_WAY: usize = limits::OPEN_BATCHES_MAX - limits::OPEN_BATCHES_OF_NOW;

/// The event time that counts, and whether it is the time of receipt because the client's lay in the future.
pub(super) fn event_time(claimed: Option<Timestamp>, receipt: Timestamp) -> (Timestamp, bool) {
    match claimed {
        None => (receipt, false),
        Some(time) if time > receipt.after(limits::CLOCK_TOLERANCE) => (receipt, true),
        Some(time) => (time, false),
    }
}

/// Where an upload goes, and whether it is late there.
struct Place {
    group: Group,
    late: bool,
}

impl Batches {
    /// The window that holds `time`.
    fn window(policy: &Policy, time: Timestamp) -> Group {
        let (from, to) = policy.window(time);
        Group::Window { from, to }
    }

    fn is_closed(&self, group: &Group, now: Timestamp, policy: &Policy) -> bool {
        let closed = match group {
            Group::Window { from, to } => {
                Some(*to) <= self.aged(now, policy) || self.closed_run(*from, *to).is_some()
            }
            Group::Label { .. } | Group::Count => false,
        };
        closed && self.find(group).is_none()
    }

    /// The first window not closed, from that of `time` on; none at the end of the calendar. What age has closed and each
    /// run of closed windows is one step.
    pub(super) fn first_not_closed(&self, time: Timestamp, now: Timestamp, policy: &Policy) -> Option<Group> {
        let (mut from, mut to) = policy.window(time);
        if let Some(aged) = self.aged(now, policy).filter(|aged| to <= *aged) {
            // A batch that is open still has a longer deadline than its window by the policy of now.
            if let Some(open) = self.first_open(from, aged, policy) {
                return Some(open.clone());
            }
            (from, to) = policy.window(aged);
        }
        while self.find(&Group::Window { from, to }).is_none()
            && let Some(end) = self.closed_run(from, to)
        {
            let next = policy.window(end);
            if next.0 <= from {
                return None;
            }
            (from, to) = next;
        }
        Some(Group::Window { from, to })
    }

    /// Whether an upload of that member and group has a batch to go to, or may open one.
    fn has_room(&self, group: &Group, member: MemberId, now: Timestamp, policy: &Policy) -> bool {
        self.find(group).is_some()
            || self.len() < GIVING_WAY
            || self.len() < self.most_open(group, member, now, policy)
    }

    /// Open batches up to which that member may open one of that group.
    fn most_open(&self, group: &Group, member: MemberId, now: Timestamp, policy: &Policy) -> usize {
        let gives_way = match group {
            Group::Window { to, .. } => *to <= policy.window(now).0,
            Group::Label { .. } => {
                let own = self.iter().filter(|open| open.row.opener == member);
                own.take(limits::OPEN_LABELS_FEW).count() == limits::OPEN_LABELS_FEW
            }
            Group::Count => false,
        };
        if gives_way { GIVING_WAY } else { limits::OPEN_BATCHES_MAX }
    }

    fn full_words(&self, own: &Group, member: MemberId, now: Timestamp, policy: &Policy) -> String {
        let most = self.most_open(own, member, now, policy);
        format!("the pool has {most} open batches already; seal some")
    }

    fn place(
        &self,
        upload: &Upload,
        time: Timestamp,
        receipt: Timestamp,
        now: Timestamp,
        policy: &Policy,
    ) -> Result<Place, Rejection> {
        let (own, closed) = match policy.grouping {
            Grouping::Window => {
                let own = Self::window(policy, time);
                let closed = self.is_closed(&own, now, policy);
                (own, closed)
            }
            Grouping::Label => {
                let Some(label) = &upload.label else {
                    return Err(Rejection {
                        rule: Rule::LabelRequired,
                        why: "the upload names no label".to_owned(),
                    });
                };
                let own = match self.find_label(label) {
                    Some(open) => open.row.group.clone(),
                    None => Group::Label { label: label.clone(), part: upload.parts.saturating_add(1) },
                };
                let closed = matches!(own, Group::Label { part: 2.., .. });
                (own, closed)
            }
            Grouping::Count => (Group::Count, false),
        };
        let member = upload.member;
        if !closed && self.has_room(&own, member, now, policy) {
            return Ok(Place { group: own, late: false });
        }
        match policy.late {
            Late::Reject => {
                let why = if closed { late_words(&own) } else { self.full_words(&own, member, now, policy) };
                Err(Rejection { rule: Rule::Late, why })
            }
            Late::Next => {
                let with_room = |group: &Group| self.has_room(group, member, now, policy);
                let next = match policy.grouping {
                    // A file that was granted long ago may find room in the present only.
                    Grouping::Window => [receipt, now]
                        .into_iter()
                        .filter_map(|time| self.first_not_closed(time, now, policy))
                        .find(with_room),
                    Grouping::Label | Grouping::Count => Some(own.clone()).filter(with_room),
                };
                next.map(|group| Place { group, late: true }).ok_or_else(|| Rejection {
                    rule: Rule::OpenBatches,
                    why: self.full_words(&own, member, now, policy),
                })
            }
        }
    }

    /// The batch that an upload of this moment would join, if it is open.
    pub(super) fn of_the_moment(
        &self,
        now: Timestamp,
        policy: &Policy,
    ) -> Option<&super::batches::OpenBatch> {
        match policy.grouping {
            Grouping::Window => self.first_not_closed(now, now, policy).and_then(|group| self.find(&group)),
            Grouping::Label => {
                self.iter().filter(|batch| matches!(batch.row.group, Group::Label { .. })).last()
            }
            Grouping::Count => self.find(&Group::Count),
        }
    }
}

fn late_words(own: &Group) -> String {
    match own {
        Group::Window { from, to } => format!("the window from {from} to {to} is closed"),
        Group::Label { label, .. } => format!("the label {label} is closed"),
        Group::Count => "the batch is closed".to_owned(),
    }
}

impl Pool {
    /// Puts an upload into its batch.
    pub(super) fn upload(&mut self, upload: &Upload, now: Timestamp, facts: &mut Vec<Fact>) -> Reply {
        let receipt = upload.received.map_or(now, |received| received.min(now));
        let (event_time, clamped) = event_time(upload.event_time, receipt);
        let Place { group, late } = match self.batches.place(upload, event_time, receipt, now, &self.policy) {
            Ok(place) => place,
            Err(rejection) => return Reply::Rejected { rejection, event_time, clamped },
        };
        let batch = self.batches.open(group, upload.member, now, &self.policy, facts);
        let first_of_member = batch.add(upload.member, upload.size, &self.publishers);
        let batch = batch.row.batch;
        self.batches.reschedule(batch, now, &self.policy, &self.publishers);
        Reply::Placed { batch, event_time, late, clamped, first_of_member }
    }
}
