//! `pmill snapshot serve|announce|publish|watch|peers`: the merge service, and calls to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, Subcommand};
use pmill_engine::Kind;
use pmill_engine::progress::StopFlag;
use pmill_engine::snapshots;
use pmill_serve::snapshots::proto::{self, publish_reply, run::Phase};
use pmill_serve::snapshots::registry::Limits;
use pmill_serve::snapshots::server::read_tokens;
use pmill_serve::snapshots::{
    Client, ClientSettings, InProcess, MergeServiceError, Merger, ServerSettings, serve,
};
use pmill_snapshot::{Algorithm, ErrorKind, InspectSettings, inspect_with};
use serde_json::{Value, json};

use crate::limits::Global;
use crate::outcome::{Failure, Outcome, Output, chain};
use crate::progress::stop_flag;
use crate::snapshot::{ScheduleName, TopologyName, edges, read_text};

/// Commands of the merge service.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Serve merges: take announcements and snapshots in, and merge when a run's rule is met
    Serve(Box<ServeArgs>),
    /// Open a run: how many agents, and when to merge
    Announce(Box<AnnounceArgs>),
    /// Hand one agent's snapshot in
    Publish(PublishArgs),
    /// Follow a run to its end, and print where the merged snapshot is
    Watch(WatchArgs),
    /// Who mixes with whom in a round of a run
    Peers(PeersArgs),
}

/// Serve merges
#[derive(Debug, Args)]
#[command(after_help = "\
Prints its address on stdout when it is ready; SIGTERM or Ctrl-C ends it. A merge that runs then goes
on at the next start.

Example:
  pmill snapshot serve --warehouse wh --root runs/ --listen 127.0.0.1:7070")]
pub struct ServeArgs {
    /// Folder of the warehouse: runs and merged snapshots are kept in its folder merge-runs
    #[arg(long, value_name = "FOLDER", env = "PMILL_WAREHOUSE")]
    warehouse: String,
    /// Folder below which agents may publish (a path or s3://BUCKET/KEY); may be given again
    #[arg(long, value_name = "FOLDER", required = true)]
    root: Vec<PathBuf>,
    /// Prefix (s3://BUCKET/KEY) below which runs may have their merged snapshots appear; may be given again
    #[arg(long, value_name = "URI")]
    output_root: Vec<PathBuf>,
    /// Address; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// File with one token a line, readable by its owner only; clients must send one of them
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificate chain (PEM)
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Ask clients for a certificate that this authority signed (PEM)
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Serve other addresses than loopback without TLS and authentication
    #[arg(long)]
    insecure: bool,
    /// Run merges on a cluster that sees the same files: the scheduler's URL
    #[cfg(feature = "cluster")]
    #[arg(long, value_name = "URL", env = "PMILL_CLUSTER")]
    cluster: Option<String>,
    #[cfg(feature = "cluster")]
    #[command(flatten)]
    scheduler: SchedulerAccess,
}

/// How the scheduler is reached; the names differ from those of the service's own TLS.
#[cfg(feature = "cluster")]
#[derive(Debug, Clone, Args)]
struct SchedulerAccess {
    /// Authority that signed the scheduler's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    cluster_tls_ca: Option<PathBuf>,
    /// File of the token that the scheduler asks for
    #[arg(long, value_name = "FILE")]
    cluster_token_file: Option<PathBuf>,
}

/// How the service is reached.
#[derive(Debug, Args)]
pub struct Connection {
    /// Address of the service
    #[arg(
        long,
        value_name = "URL",
        env = "PMILL_MERGE_SERVER",
        default_value = "http://127.0.0.1:7070"
    )]
    server: String,
    /// File whose first token is sent
    #[arg(long, value_name = "FILE", env = "PMILL_MERGE_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Authority that signed the service's certificate (PEM), for https
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
    /// Own certificate (PEM), when the service asks for one
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of the own certificate (PEM)
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Seconds to wait for the answer; meanwhile a service that is away is tried again
    #[arg(long, value_name = "SECONDS", default_value_t = 600)]
    timeout: u64,
}

/// Open a run
#[derive(Debug, Args)]
pub struct AnnounceArgs {
    /// Name of the run
    #[arg(long, value_name = "NAME")]
    run: String,
    /// Number of agents, called 0, 1, ...; or their names: a,b,c
    #[arg(long, value_name = "N|NAMES")]
    agents: String,
    /// When to merge: all, quorum:K, deadline:SECONDS or deadline:SECONDS:AT_LEAST
    #[arg(long, value_name = "RULE", default_value = "all", value_parser = parse_rule)]
    rule: proto::Rule,
    /// Where the merged snapshot is to appear (s3://BUCKET/KEY below an --output-root of the service); by default in
    /// the service's warehouse
    #[arg(long, value_name = "URI")]
    output: Option<String>,
    /// Weigh agents by the examples they saw
    #[arg(long)]
    by_examples: bool,
    /// Type of the averaged tensors, such as BF16; they keep theirs by default
    #[arg(long, value_name = "TYPE", default_value = "")]
    output_dtype: String,
    /// PATTERN=mean, PATTERN=copy:K, PATTERN=skip or PATTERN=recalibrate; the first that matches decides
    #[arg(long = "tensor-rule", value_name = "RULE")]
    tensor_rules: Vec<String>,
    /// Average NaN and infinity instead of refusing them
    #[arg(long)]
    allow_nonfinite: bool,
    /// Merge although two agents publish equal weights
    #[arg(long)]
    allow_same: bool,
    /// Merge although config.json says that the architectures differ
    #[arg(long)]
    allow_config_differences: bool,
    /// Low-rank adapters: refuse, factors or products
    #[arg(long, value_name = "HOW", default_value = "")]
    lora: String,
    /// Serve a peer table: who mixes with whom in each round
    #[arg(long, value_enum, conflicts_with = "edges")]
    topology: Option<TopologyName>,
    /// Peer table by Metropolis-Hastings weights of a file with one edge a line
    #[arg(long, value_name = "FILE")]
    edges: Option<PathBuf>,
    /// Number of random peers, or the probability of a pair in a matching
    #[arg(long, default_value_t = 1.0)]
    peers: f64,
    /// Seed of the random choices
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Rounds in all, for a schedule
    #[arg(long, default_value_t = 1)]
    rounds: u64,
    /// How --peers changes over the rounds
    #[arg(long, value_enum, default_value_t = ScheduleName::Fixed)]
    schedule: ScheduleName,
    /// Factor on --peers in the last round, for linear and cosine
    #[arg(long, default_value_t = 0.0)]
    last: f64,
    /// Length of the window in rounds, for late
    #[arg(long, default_value_t = 1)]
    window: u64,
    #[command(flatten)]
    connection: Connection,
}

/// Hand a snapshot in
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// Folder, safetensors file or index; a path or s3://BUCKET/KEY
    snapshot: String,
    /// Name of the run
    #[arg(long, value_name = "NAME")]
    run: String,
    /// Name of the agent
    #[arg(long, value_name = "NAME")]
    agent: String,
    /// Training step; a later step takes the place of an earlier one
    #[arg(long, value_name = "N")]
    step: u64,
    /// Training examples seen
    #[arg(long, value_name = "N", default_value_t = 0)]
    examples: u64,
    /// Send the place as it is written, without reading the snapshot here first
    #[arg(long)]
    no_digest: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Follow a run
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Name of the run
    #[arg(long, value_name = "NAME")]
    run: String,
    #[command(flatten)]
    connection: Connection,
}

/// Who mixes with whom
#[derive(Debug, Args)]
pub struct PeersArgs {
    /// Name of the run
    #[arg(long, value_name = "NAME")]
    run: String,
    /// The round, from 0
    #[arg(long, value_name = "N")]
    round: u64,
    #[command(flatten)]
    connection: Connection,
}

fn parse_rule(text: &str) -> Result<proto::Rule, String> {
    use proto::rule::Kind;
    let wrong =
        || "expected all, quorum:K, deadline:SECONDS or deadline:SECONDS:AT_LEAST".to_owned();
    let parts: Vec<&str> = text.split(':').collect();
    let kind = match parts.as_slice() {
        ["all"] => Kind::All(proto::All {}),
        ["quorum", agents] => Kind::Quorum(proto::Quorum {
            agents: agents.parse().map_err(|_| wrong())?,
        }),
        ["deadline", seconds, rest @ ..] if rest.len() <= 1 => Kind::Deadline(proto::Deadline {
            seconds: seconds.parse().map_err(|_| wrong())?,
            at_least: match rest {
                [at_least] => at_least.parse().map_err(|_| wrong())?,
                _ => 1,
            },
        }),
        _ => return Err(wrong()),
    };
    Ok(proto::Rule { kind: Some(kind) })
}

impl From<MergeServiceError> for Failure {
    fn from(error: MergeServiceError) -> Self {
        let kind = match error.kind() {
            ErrorKind::User => Kind::User,
            ErrorKind::NotNow => Kind::NotNow,
            ErrorKind::Bug => Kind::Bug,
        };
        Self::Error(kind, chain(&error))
    }
}

impl Connection {
    fn client(&self) -> Result<Client, Failure> {
        let token = match &self.token_file {
            Some(file) => read_tokens(file)?.into_iter().next(),
            None => None,
        };
        Ok(Client::new(ClientSettings {
            server: self.server.clone(),
            token,
            tls_ca: self.tls_ca.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            timeout: Duration::from_secs(self.timeout),
        })?)
    }
}

impl ServiceCommand {
    /// Runs the command.
    pub fn run(&self, global: &Global, dry_run: bool) -> Outcome {
        match self {
            Self::Serve(args) => args.run(global, dry_run),
            Self::Announce(args) => args.run(dry_run),
            Self::Publish(args) => args.run(global, dry_run),
            Self::Watch(args) => args.run(global),
            Self::Peers(args) => args.run(global),
        }
    }
}

impl ServeArgs {
    fn merger(&self) -> Arc<dyn Merger> {
        #[cfg(feature = "cluster")]
        if let Some(url) = &self.cluster {
            return Arc::new(crate::snapshot_cluster::OnCluster {
                url: url.clone(),
                security: pmill_cluster::ClientSecurity {
                    ca: self.scheduler.cluster_tls_ca.clone(),
                    certificate: None,
                    token_file: self.scheduler.cluster_token_file.clone(),
                },
            });
        }
        Arc::new(InProcess)
    }

    fn run(&self, global: &Global, dry_run: bool) -> Outcome {
        let settings = ServerSettings {
            warehouse: self.warehouse.clone(),
            roots: self.root.clone(),
            output_roots: self.output_root.clone(),
            listen: self.listen,
            token_file: self.token_file.clone(),
            tls_cert: self.tls_cert.clone(),
            tls_key: self.tls_key.clone(),
            tls_client_ca: self.tls_client_ca.clone(),
            insecure: self.insecure,
            limits: Limits {
                threads: Some(global.threads()),
                memory_limit_bytes: global.memory_limit.map(|size| size.0),
            },
            merger: self.merger(),
        };
        if dry_run {
            settings.check()?;
            return Ok(Output::Summary {
                json: json!({"listen": self.listen.to_string(), "warehouse": self.warehouse}),
                text: format!("would serve {} on {}\n", self.warehouse, self.listen),
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        follow(stop_flag(), Arc::clone(&stop));
        let as_json = global.json;
        serve(&settings, stop, &|url| {
            let line = if as_json {
                json!({ "url": url }).to_string()
            } else {
                url.to_owned()
            };
            // A closed pipe is no reason not to serve.
            let _ = crate::outcome::print(format!("{line}\n").as_bytes());
        })?;
        Ok(Output::Done)
    }
}

/// Passes Ctrl-C and SIGTERM on.
fn follow(from: Arc<StopFlag>, to: Arc<AtomicBool>) {
    std::thread::spawn(move || {
        while !from.is_set() {
            std::thread::sleep(Duration::from_millis(50));
        }
        to.store(true, Ordering::Release);
    });
}

impl AnnounceArgs {
    fn request(&self) -> Result<proto::AnnounceRequest, Failure> {
        let (agents, agent_names) = match self.agents.parse::<u32>() {
            Ok(count) => (count, Vec::new()),
            Err(_) => {
                let names: Vec<String> = self
                    .agents
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect();
                (u32::try_from(names.len()).unwrap_or(u32::MAX), names)
            }
        };
        Ok(proto::AnnounceRequest {
            run: self.run.clone(),
            agents,
            agent_names,
            rule: Some(self.rule),
            weighting: if self.by_examples {
                proto::Weighting::Examples.into()
            } else {
                proto::Weighting::Uniform.into()
            },
            options: Some(proto::MergeOptions {
                output_dtype: self.output_dtype.clone(),
                rules: self.tensor_rules.clone(),
                allow_nonfinite: self.allow_nonfinite,
                allow_same: self.allow_same,
                allow_config_differences: self.allow_config_differences,
                low_rank: self.lora.clone(),
            }),
            mixing: self.mixing()?,
            output: self.output.clone().unwrap_or_default(),
        })
    }

    fn mixing(&self) -> Result<Option<proto::Mixing>, Failure> {
        let narrow = |agent: usize| u32::try_from(agent).unwrap_or(u32::MAX);
        let topology = match (&self.edges, self.topology) {
            (Some(_), _) => "edges",
            (None, Some(TopologyName::Ring)) => "ring",
            (None, Some(TopologyName::Left)) => "left",
            (None, Some(TopologyName::Complete)) => "complete",
            (None, Some(TopologyName::Exponential)) => "exponential",
            (None, Some(TopologyName::Random)) => "random",
            (None, Some(TopologyName::Matching)) => "matching",
            (None, None) => return Ok(None),
        };
        let edges = match &self.edges {
            Some(file) => edges(&read_text(file)?)?,
            None => Vec::new(),
        };
        let schedule = match self.schedule {
            ScheduleName::Fixed => "fixed",
            ScheduleName::Linear => "linear",
            ScheduleName::Cosine => "cosine",
            ScheduleName::Late => "late",
        };
        Ok(Some(proto::Mixing {
            topology: topology.to_owned(),
            peers: self.peers,
            seed: self.seed,
            edges: edges
                .into_iter()
                .map(|(a, b)| proto::Edge {
                    a: narrow(a),
                    b: narrow(b),
                })
                .collect(),
            schedule: schedule.to_owned(),
            rounds: self.rounds,
            last: self.last,
            window: self.window,
        }))
    }

    fn run(&self, dry_run: bool) -> Outcome {
        let request = self.request()?;
        let client = self.connection.client()?;
        if dry_run {
            return Ok(Output::Summary {
                json: json!({"run": self.run, "agents": request.agents, "server": self.connection.server}),
                text: format!(
                    "would announce run `{}` of {} agents to {}\n",
                    self.run, request.agents, self.connection.server
                ),
            });
        }
        let run = client.announce(&request)?;
        Ok(Output::Summary {
            json: run_json(&run),
            text: run_text(&run),
        })
    }
}

impl PublishArgs {
    fn run(&self, global: &Global, dry_run: bool) -> Outcome {
        let client = self.connection.client()?;
        let (uri, digest) = if self.no_digest {
            (self.snapshot.clone(), String::new())
        } else {
            let mut path = PathBuf::from(&self.snapshot);
            if !snapshots::is_remote(&path) {
                path =
                    path.canonicalize()
                        .map_err(|source| pmill_snapshot::SnapshotError::Read {
                            path: self.snapshot.clone(),
                            source,
                        })?;
            }
            // What goes over a network is checked against adversaries too.
            let settings = InspectSettings {
                read_data: true,
                algorithm: Algorithm::Blake3,
                threads: Some(global.threads()),
            };
            let inventory = inspect_with(&snapshots::open(&path)?, settings)?;
            let digest = inventory.digest.map(|digest| digest.to_string());
            (path.display().to_string(), digest.unwrap_or_default())
        };
        if dry_run {
            return Ok(Output::Summary {
                json: json!({"uri": uri, "digest": digest, "server": self.connection.server}),
                text: format!("would publish {uri} (digest {digest})\n"),
            });
        }
        let reply = client.publish(&proto::PublishRequest {
            run: self.run.clone(),
            agent: self.agent.clone(),
            uri,
            step: self.step,
            digest,
            examples: self.examples,
        })?;
        let outcome = match reply.outcome() {
            publish_reply::Outcome::Repeated => "repeated",
            publish_reply::Outcome::Replaced => "replaced",
            _ => "accepted",
        };
        let run = reply.run.unwrap_or_default();
        Ok(Output::Summary {
            text: format!("{outcome}, digest {}\n{}", reply.digest, run_text(&run)),
            json: json!({"outcome": outcome, "digest": reply.digest, "run": run_json(&run)}),
        })
    }
}

impl WatchArgs {
    fn run(&self, global: &Global) -> Outcome {
        let client = self.connection.client()?;
        let stop = stop_flag();
        let quiet = global.quiet || global.json;
        let run = client.watch(&self.run, &|| !stop.is_set(), &mut |run| {
            if !quiet {
                eprint!("{}", run_text(run));
            }
        })?;
        if run.phase() == Phase::Failed {
            return Err(Failure::user(format!(
                "run `{}` failed: {}",
                run.run, run.message
            )));
        }
        Ok(if global.json {
            Output::Summary {
                json: run_json(&run),
                text: String::new(),
            }
        } else {
            Output::Bytes(format!("{}\n", run.merged_uri).into_bytes())
        })
    }
}

impl PeersArgs {
    fn run(&self, global: &Global) -> Outcome {
        let table = self.connection.client()?.peers(&self.run, self.round)?;
        if global.json {
            let rows = table.rows.iter().map(|row| {
                let peers = row
                    .peers
                    .iter()
                    .map(|peer| json!({"agent": peer.agent, "weight": peer.weight}));
                json!({
                    "agent": row.agent, "own_weight": row.own_weight, "peers": peers.collect::<Vec<_>>(),
                })
            });
            return Ok(Output::Summary {
                json: json!({
                    "round": table.round, "rows": rows.collect::<Vec<_>>(),
                    "spectral_gap": table.spectral_gap, "doubly_stochastic": table.doubly_stochastic,
                }),
                text: String::new(),
            });
        }
        let mut text = String::new();
        for row in &table.rows {
            text.push_str(&format!("{}: own {:.6}", row.agent, row.own_weight));
            for peer in &row.peers {
                text.push_str(&format!(", {} {:.6}", peer.agent, peer.weight));
            }
            text.push('\n');
        }
        Ok(Output::Bytes(text.into_bytes()))
    }
}

fn phase(run: &proto::Run) -> &'static str {
    match run.phase() {
        Phase::Merging => "merging",
        Phase::Merged => "merged",
        Phase::Failed => "failed",
        _ => "open",
    }
}

fn run_text(run: &proto::Run) -> String {
    let mut text = format!("run {} is {}: {}\n", run.run, phase(run), run.message);
    if !run.merged_uri.is_empty() {
        text.push_str(&format!(
            "{}  digest {}\n",
            run.merged_uri, run.merged_digest
        ));
    }
    text
}

fn run_json(run: &proto::Run) -> Value {
    let published: Vec<Value> = run
        .published
        .iter()
        .map(|record| {
            json!({
                "agent": record.agent, "uri": record.uri, "step": record.step,
                "digest": record.digest, "examples": record.examples,
            })
        })
        .collect();
    let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    json!({
        "run": run.run, "phase": phase(run), "message": run.message, "agents": run.agents,
        "published": published,
        "deadline_unix_ms": (run.deadline_unix_ms > 0).then_some(run.deadline_unix_ms),
        "merged": some(&run.merged_uri), "digest": some(&run.merged_digest),
        "merged_agents": run.merged_agents, "weights": run.merged_weights,
    })
}
