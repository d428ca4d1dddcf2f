//! Between the messages of the wire and the records of the service.

use super::error::MergeServiceError;
use super::proto;
use super::record::{Announcement, FORMAT, Mixing, Outcome, Published, Rule, RunState, Weighting};
use super::registry::{Publication, Receipt};
use pmill_snapshot::{
    Digest, LowRank, MAX_AGENTS, MergeSettings, MixingMatrix, Schedule, Topology,
};

/// Reads a BLAKE3 digest, with or without its name.
pub(super) fn digest(text: &str) -> Result<Option<Digest>, MergeServiceError> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse() {
        Ok(digest @ Digest::Blake3(_)) => Ok(Some(digest)),
        _ => Err(MergeServiceError::invalid(format!(
            "digest `{text}`: expected blake3: and 64 hex digits, as `pmill snapshot inspect --data --digest blake3` prints it, or nothing"
        ))),
    }
}

fn whole(number: u32) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn rule(rule: Option<proto::Rule>) -> Result<Rule, MergeServiceError> {
    use proto::rule::Kind;
    match rule.and_then(|rule| rule.kind) {
        Some(Kind::All(_)) => Ok(Rule::All),
        Some(Kind::Quorum(quorum)) => Ok(Rule::Quorum {
            agents: whole(quorum.agents),
        }),
        Some(Kind::Deadline(deadline)) => Ok(Rule::Deadline {
            seconds: deadline.seconds,
            at_least: whole(deadline.at_least).max(1),
        }),
        None => Err(MergeServiceError::invalid(
            "the announcement has no rule, expected all, quorum or deadline",
        )),
    }
}

fn mixing(mixing: proto::Mixing) -> Result<Mixing, MergeServiceError> {
    let topology = match mixing.topology.as_str() {
        "ring" => Topology::Ring,
        "left" => Topology::Left,
        "complete" => Topology::Complete,
        "exponential" => Topology::Exponential,
        "random" => Topology::Random {
            peers: mixing.peers,
            seed: mixing.seed,
        },
        "matching" => Topology::Matching {
            probability: mixing.peers,
            seed: mixing.seed,
        },
        "edges" => Topology::Edges(
            mixing
                .edges
                .iter()
                .map(|edge| (whole(edge.a), whole(edge.b)))
                .collect(),
        ),
        other => {
            return Err(MergeServiceError::invalid(format!(
                "topology `{other}`: expected ring, left, complete, exponential, random, matching or edges"
            )));
        }
    };
    let schedule = match mixing.schedule.as_str() {
        "" | "fixed" => Schedule::Fixed,
        "linear" => Schedule::Linear { last: mixing.last },
        "cosine" => Schedule::Cosine { last: mixing.last },
        "late" => Schedule::Late {
            rounds: mixing.window,
        },
        other => {
            return Err(MergeServiceError::invalid(format!(
                "schedule `{other}`: expected fixed, linear, cosine or late"
            )));
        }
    };
    Ok(Mixing {
        topology,
        schedule,
        rounds: mixing.rounds,
    })
}

fn settings(options: proto::MergeOptions) -> Result<MergeSettings, MergeServiceError> {
    let output_dtype = match options.output_dtype.as_str() {
        "" => None,
        name => Some(
            name.parse()
                .map_err(|what: String| MergeServiceError::invalid(what))?,
        ),
    };
    let low_rank = match options.low_rank.as_str() {
        "" | "refuse" => LowRank::Refuse,
        "factors" => LowRank::Factors,
        "products" => LowRank::Products,
        other => {
            return Err(MergeServiceError::invalid(format!(
                "low_rank `{other}`: expected refuse, factors or products"
            )));
        }
    };
    Ok(MergeSettings {
        output_dtype,
        rules: options
            .rules
            .iter()
            .map(|rule| rule.parse())
            .collect::<Result<_, _>>()?,
        allow_nonfinite: options.allow_nonfinite,
        low_rank,
        allow_config_differences: options.allow_config_differences,
        allow_same: options.allow_same,
        ..MergeSettings::default()
    })
}

/// What was announced; not checked yet.
pub(super) fn announcement(
    request: proto::AnnounceRequest,
) -> Result<Announcement, MergeServiceError> {
    let count = whole(request.agents);
    let names = request.agent_names;
    if !names.is_empty() && names.len() != count {
        return Err(MergeServiceError::invalid(format!(
            "{} agent names for {count} agents: expected one for each, or none",
            names.len()
        )));
    }
    let agents = if names.is_empty() {
        // One more than allowed is enough to be refused.
        (0..count.min(MAX_AGENTS + 1))
            .map(|agent| agent.to_string())
            .collect()
    } else {
        names
    };
    let weighting = match proto::Weighting::try_from(request.weighting) {
        Ok(proto::Weighting::Uniform) => Weighting::Uniform,
        Ok(proto::Weighting::Examples) => Weighting::Examples,
        Err(_) => {
            return Err(MergeServiceError::invalid(format!(
                "weighting {}: expected 0 (uniform) or 1 (examples)",
                request.weighting
            )));
        }
    };
    Ok(Announcement {
        format: FORMAT,
        run: request.run,
        agents,
        rule: rule(request.rule)?,
        weighting,
        settings: settings(request.options.unwrap_or_default())?,
        mixing: request.mixing.map(mixing).transpose()?,
        output: (!request.output.is_empty()).then_some(request.output),
        deadline_unix_ms: None,
    })
}

pub(super) fn publication(
    request: proto::PublishRequest,
) -> Result<Publication, MergeServiceError> {
    Ok(Publication {
        digest: digest(&request.digest)?,
        run: request.run,
        agent: request.agent,
        uri: request.uri,
        step: request.step,
        examples: request.examples,
    })
}

fn published(record: &Published) -> proto::Publication {
    proto::Publication {
        agent: record.agent.clone(),
        uri: record.uri.clone(),
        step: record.step,
        digest: record.digest.to_string(),
        examples: record.examples,
    }
}

pub(super) fn run(state: &RunState) -> proto::Run {
    use proto::rule::Kind;
    use proto::run::Phase;
    let announcement = &state.announcement;
    let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let kind = match announcement.rule {
        Rule::All => Kind::All(proto::All {}),
        Rule::Quorum { agents } => Kind::Quorum(proto::Quorum {
            agents: narrow(agents),
        }),
        Rule::Deadline { seconds, at_least } => Kind::Deadline(proto::Deadline {
            seconds,
            at_least: narrow(at_least),
        }),
    };
    let mut run = proto::Run {
        run: announcement.run.clone(),
        agents: announcement.agents.clone(),
        published: state.published.values().map(published).collect(),
        rule: Some(proto::Rule { kind: Some(kind) }),
        deadline_unix_ms: announcement.deadline_unix_ms.unwrap_or(0),
        message: state.message(),
        ..proto::Run::default()
    };
    if let Some(decision) = &state.decision {
        run.merged_agents = decision
            .merged
            .iter()
            .map(|record| record.agent.clone())
            .collect();
    }
    let phase = match &state.outcome {
        Some(Outcome::Merged {
            uri,
            digest,
            weights,
        }) => {
            run.merged_uri.clone_from(uri);
            run.merged_digest = digest.to_string();
            run.merged_weights.clone_from(weights);
            Phase::Merged
        }
        Some(Outcome::Failed { .. }) => Phase::Failed,
        None if state.decision.is_some() => Phase::Merging,
        None => Phase::Open,
    };
    run.set_phase(phase);
    run
}

pub(super) fn reply(receipt: Receipt, record: &Published, state: &RunState) -> proto::PublishReply {
    use proto::publish_reply::Outcome;
    let outcome = match receipt {
        Receipt::Accepted => Outcome::Accepted,
        Receipt::Repeated => Outcome::Repeated,
        Receipt::Replaced => Outcome::Replaced,
    };
    let mut reply = proto::PublishReply {
        digest: record.digest.to_string(),
        run: Some(run(state)),
        ..proto::PublishReply::default()
    };
    reply.set_outcome(outcome);
    reply
}

pub(super) fn peers(agents: &[String], round: u64, matrix: &MixingMatrix) -> proto::PeerTable {
    let report = matrix.report();
    let rows = agents.iter().zip(matrix.peers()).enumerate();
    proto::PeerTable {
        round,
        rows: rows
            .map(|(agent, (name, peers))| proto::PeerRow {
                agent: name.clone(),
                own_weight: matrix.row(agent).fraction(agent),
                peers: peers
                    .into_iter()
                    .map(|peer| proto::Peer {
                        agent: agents[peer].clone(),
                        weight: matrix.row(agent).fraction(peer),
                    })
                    .collect(),
            })
            .collect(),
        spectral_gap: report.spectral_gap,
        doubly_stochastic: report.doubly_stochastic,
    }
}
