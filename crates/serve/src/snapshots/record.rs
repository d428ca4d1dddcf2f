//! What is known of a run, and when its rule is met: plain records, no files and no clock.

use super::error::MergeServiceError;
use pmill_snapshot::{Digest, MAX_AGENTS, MergeSettings, MixingMatrix, Schedule, Topology};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Version of the state files.
pub const FORMAT: u32 = 1;

/// When the one merge runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Rule {
    /// When every agent has published.
    All,
    /// As soon as so many have.
    Quorum {
        /// 1 to the number of agents.
        agents: usize,
    },
    /// So long after the announcement with whoever has published; earlier when all have.
    Deadline {
        /// At least 1.
        seconds: u64,
        /// With fewer the run fails at the deadline; at least 1.
        at_least: usize,
    },
}

/// How much each agent counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// All alike.
    #[default]
    Uniform,
    /// By the examples seen.
    Examples,
}

/// Who mixes with whom in the rounds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mixing {
    /// With its full value of peers or probability.
    pub topology: Topology,
    /// How that value changes.
    pub schedule: Schedule,
    /// Rounds in all, for the schedule.
    pub rounds: u64,
}

impl Mixing {
    /// The matrix of one round (from 0).
    ///
    /// # Errors
    /// Those of [`Topology::matrix`].
    pub fn matrix(&self, agents: usize, round: u64) -> Result<MixingMatrix, MergeServiceError> {
        let mut topology = self.topology.clone();
        match &mut topology {
            Topology::Random { peers: full, .. }
            | Topology::Matching {
                probability: full, ..
            } => {
                *full = self.schedule.value(*full, round, self.rounds);
            }
            _ => {}
        }
        Ok(topology.matrix(agents, round)?)
    }
}

/// What a run is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// [`FORMAT`].
    pub format: u32,
    /// Its name.
    pub run: String,
    /// The agents' names, in the order of weights and mixing matrix.
    pub agents: Vec<String>,
    /// When to merge.
    pub rule: Rule,
    /// How much each counts.
    pub weighting: Weighting,
    /// How to merge; weights, threads and memory are set at the merge.
    pub settings: MergeSettings,
    /// The peer table.
    pub mixing: Option<Mixing>,
    /// Where the merged snapshot is to appear, a URI of an object store; in the warehouse without one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<String>,
    /// Unix time of the deadline in milliseconds.
    pub deadline_unix_ms: Option<u64>,
}

/// Refuses names that are no safe file names.
fn check_name(what: &str, name: &str) -> Result<(), MergeServiceError> {
    let letters = name
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if letters && (1..=100).contains(&name.len()) && !name.starts_with('.') {
        return Ok(());
    }
    Err(MergeServiceError::invalid(format!(
        "{what} `{name}`: expected 1 to 100 letters, digits, `.`, `_` or `-`, not beginning with a dot"
    )))
}

impl Announcement {
    /// Checks what was announced.
    ///
    /// # Errors
    /// Names, numbers and rules that cannot be used, each by name.
    pub fn check(&self) -> Result<(), MergeServiceError> {
        use pmill_snapshot::Action;
        check_name("run", &self.run)?;
        let count = self.agents.len();
        if !(1..=MAX_AGENTS).contains(&count) {
            return Err(MergeServiceError::invalid(format!(
                "run `{}` has {count} agents, expected 1 to {MAX_AGENTS}",
                self.run
            )));
        }
        let mut sorted: Vec<&String> = self.agents.iter().collect();
        sorted.sort();
        for name in &sorted {
            check_name("agent", name)?;
        }
        if let Some(pair) = sorted.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(MergeServiceError::invalid(format!(
                "agent `{}` is named twice",
                pair[0]
            )));
        }
        match self.rule {
            Rule::Quorum { agents }
            | Rule::Deadline {
                at_least: agents, ..
            } if agents == 0 || agents > count => {
                return Err(MergeServiceError::invalid(format!(
                    "the rule asks for {agents} agents, expected 1 to {count}"
                )));
            }
            Rule::Deadline { seconds: 0, .. } => {
                return Err(MergeServiceError::invalid(
                    "a deadline of 0 seconds, expected at least 1",
                ));
            }
            _ => {}
        }
        for rule in &self.settings.rules {
            match rule.action {
                Action::Copy(_) if self.rule != Rule::All => {
                    return Err(MergeServiceError::invalid(format!(
                        "`{}` is copied from one agent, which may be missing; use the rule `all`",
                        rule.pattern
                    )));
                }
                Action::Copy(agent) if agent >= count => {
                    return Err(MergeServiceError::invalid(format!(
                        "`{}` is copied from agent {agent}, but there are {count} (counted from 0)",
                        rule.pattern
                    )));
                }
                _ => {}
            }
        }
        if let Some(mixing) = &self.mixing {
            mixing.matrix(count, 0)?;
            mixing.matrix(count, mixing.rounds.saturating_sub(1))?;
        }
        Ok(())
    }

    /// Whether another announcement says the same; when it was made does not matter.
    #[must_use]
    pub fn same_as(&self, other: &Self) -> bool {
        let mut other = other.clone();
        other.deadline_unix_ms = self.deadline_unix_ms;
        *self == other
    }

    /// The position of an agent.
    ///
    /// # Errors
    /// [`MergeServiceError::UnknownAgent`], with the first names there are.
    pub fn agent(&self, name: &str) -> Result<usize, MergeServiceError> {
        const SHOWN: usize = 8;
        let found = self.agents.iter().position(|agent| agent == name);
        found.ok_or_else(|| {
            let mut agents = self.agents[..self.agents.len().min(SHOWN)].join(", ");
            if self.agents.len() > SHOWN {
                agents.push_str(&format!(" and {} more", self.agents.len() - SHOWN));
            }
            MergeServiceError::UnknownAgent {
                run: self.run.clone(),
                agent: name.to_owned(),
                agents,
            }
        })
    }
}

/// One agent's snapshot, as it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// The agent's name.
    pub agent: String,
    /// Where the snapshot is.
    pub uri: String,
    /// Training step.
    pub step: u64,
    /// Content digest, as the service computed it.
    pub digest: Digest,
    /// Training examples seen.
    pub examples: u64,
}

/// Who is merged, and why now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decision {
    /// The snapshots, in the order of the agents.
    pub merged: Vec<Published>,
    /// Such as `all 4 agents have published`.
    pub reason: String,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Outcome {
    /// There is a merged snapshot.
    Merged {
        /// Where.
        uri: String,
        /// Its content digest.
        digest: Digest,
        /// The exact weights, as k/K.
        weights: Vec<String>,
    },
    /// There is none.
    Failed {
        /// Why.
        message: String,
    },
}

/// What a rule says of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Go on waiting.
    Wait,
    /// Merge what is published.
    Merge {
        /// Why now.
        reason: String,
    },
    /// It cannot be met any more.
    Fail {
        /// Why.
        message: String,
    },
}

/// A run as it stands.
#[derive(Debug, Clone)]
pub struct RunState {
    /// What it is.
    pub announcement: Announcement,
    /// What was published, by the agent's position.
    pub published: BTreeMap<usize, Published>,
    /// Who is merged, once the rule is met.
    pub decision: Option<Decision>,
    /// How it ended.
    pub outcome: Option<Outcome>,
}

impl RunState {
    /// Whether publications still count.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.decision.is_none() && self.outcome.is_none()
    }

    /// What the rule says at this time (Unix, milliseconds).
    #[must_use]
    pub fn verdict(&self, now_unix_ms: u64) -> Verdict {
        if !self.is_open() {
            return Verdict::Wait;
        }
        let (have, all) = (self.published.len(), self.announcement.agents.len());
        if have == all {
            return Verdict::Merge {
                reason: format!("all {all} agents have published"),
            };
        }
        let past = self
            .announcement
            .deadline_unix_ms
            .is_some_and(|deadline| deadline <= now_unix_ms);
        match self.announcement.rule {
            Rule::Quorum { agents } if have >= agents => Verdict::Merge {
                reason: format!("the quorum of {agents} agents is reached"),
            },
            Rule::Deadline { at_least, .. } if past && have >= at_least => Verdict::Merge {
                reason: format!("the deadline has passed with {have} of {all} agents"),
            },
            Rule::Deadline { at_least, .. } if past => Verdict::Fail {
                message: format!(
                    "the deadline has passed with {have} of {all} agents, and at least {at_least} were asked for"
                ),
            },
            _ => Verdict::Wait,
        }
    }

    /// The decision to merge what is published now.
    #[must_use]
    pub fn decide(&self, reason: String) -> Decision {
        Decision {
            merged: self.published.values().cloned().collect(),
            reason,
        }
    }

    /// What is awaited, or how it ended, in words.
    #[must_use]
    pub fn message(&self) -> String {
        match (&self.outcome, &self.decision) {
            (Some(Outcome::Failed { message }), _) => message.clone(),
            (Some(Outcome::Merged { .. }), Some(decision)) => decision.reason.clone(),
            (Some(Outcome::Merged { .. }), None) => String::new(),
            (None, Some(decision)) => format!("{}; merging", decision.reason),
            (None, None) => {
                let missing: Vec<&str> = self
                    .announcement
                    .agents
                    .iter()
                    .enumerate()
                    .filter(|(agent, _)| !self.published.contains_key(agent))
                    .map(|(_, name)| name.as_str())
                    .collect();
                let shown = missing[..missing.len().min(8)].join(", ");
                let more = match missing.len() {
                    0..=8 => String::new(),
                    count => format!(" and {} more", count - 8),
                };
                format!(
                    "{} of {} agents have published; not yet: {shown}{more}",
                    self.published.len(),
                    self.announcement.agents.len()
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn announcement(agents: usize, rule: Rule) -> Announcement {
        Announcement {
            format: FORMAT,
            run: "r".into(),
            agents: (0..agents).map(|agent| agent.to_string()).collect(),
            rule,
            weighting: Weighting::Uniform,
            settings: MergeSettings::default(),
            mixing: None,
            output: None,
            deadline_unix_ms: match rule {
                Rule::Deadline { seconds, .. } => Some(seconds * 1000),
                _ => None,
            },
        }
    }

    fn with(rule: Rule, have: usize) -> RunState {
        let published = |agent: usize| Published {
            agent: agent.to_string(),
            uri: format!("/a/{agent}"),
            step: 1,
            digest: Digest::Blake3([agent as u8; 32]),
            examples: 0,
        };
        RunState {
            announcement: announcement(4, rule),
            published: (0..have).map(|agent| (agent, published(agent))).collect(),
            decision: None,
            outcome: None,
        }
    }

    #[test]
    fn rules_are_met_when_they_say() {
        let merges = |state: &RunState, now| matches!(state.verdict(now), Verdict::Merge { .. });
        assert_eq!(with(Rule::All, 3).verdict(u64::MAX), Verdict::Wait);
        assert!(merges(&with(Rule::All, 4), 0));
        let quorum = Rule::Quorum { agents: 2 };
        assert_eq!(with(quorum, 1).verdict(u64::MAX), Verdict::Wait);
        assert!(merges(&with(quorum, 2), 0));
        let deadline = Rule::Deadline {
            seconds: 5,
            at_least: 2,
        };
        assert_eq!(with(deadline, 3).verdict(4_999), Verdict::Wait);
        assert!(merges(&with(deadline, 3), 5_000));
        assert!(merges(&with(deadline, 4), 0));
        let Verdict::Fail { message } = with(deadline, 1).verdict(5_000) else {
            panic!("one agent is not enough");
        };
        assert_eq!(
            message,
            "the deadline has passed with 1 of 4 agents, and at least 2 were asked for"
        );
        let mut decided = with(Rule::All, 4);
        decided.decision = Some(decided.decide("done".into()));
        assert_eq!(decided.verdict(u64::MAX), Verdict::Wait);
    }

    #[test]
    fn announcements_that_cannot_be_met_are_refused() {
        let refused = |change: &dyn Fn(&mut Announcement)| {
            let mut announcement = announcement(4, Rule::All);
            change(&mut announcement);
            announcement.check().unwrap_err().to_string()
        };
        announcement(4, Rule::All).check().unwrap();
        let quorum = refused(&|it| it.rule = Rule::Quorum { agents: 5 });
        assert_eq!(quorum, "the rule asks for 5 agents, expected 1 to 4");
        assert!(refused(&|it| it.run = "../up".into()).contains("`../up`"));
        assert!(refused(&|it| it.run = ".hidden".into()).contains("dot"));
        assert!(refused(&|it| it.agents[1] = "0".into()).contains("`0` is named twice"));
        assert!(refused(&|it| it.agents.clear()).contains("0 agents"));
        let copy = refused(&|it| {
            it.settings.rules = vec!["bn.*=copy:1".parse().unwrap()];
            it.rule = Rule::Quorum { agents: 2 };
        });
        assert!(copy.contains("use the rule `all`"), "{copy}");
        let mixing = refused(&|it| {
            it.mixing = Some(Mixing {
                topology: Topology::Random {
                    peers: 9.0,
                    seed: 0,
                },
                schedule: Schedule::Fixed,
                rounds: 1,
            });
        });
        assert!(mixing.contains("expected 0 to 3"), "{mixing}");
    }

    #[test]
    fn the_peer_table_follows_its_schedule() {
        let mixing = Mixing {
            topology: Topology::Matching {
                probability: 1.0,
                seed: 3,
            },
            schedule: Schedule::Late { rounds: 2 },
            rounds: 10,
        };
        let pairs = |round| -> usize {
            let matrix = mixing.matrix(8, round).unwrap();
            matrix.peers().iter().map(Vec::len).sum()
        };
        assert_eq!((pairs(7), pairs(8), pairs(9)), (0, 8, 8));
    }
}
