//! Who mixes with whom: mixing matrices with exact rows, schedules, and the spectral gap.

use crate::error::SnapshotError;
use crate::weights::{Row, Weight};
use serde::{Deserialize, Serialize};

/// The most agents of one matrix.
pub const MAX_AGENTS: usize = 1024;

/// A row-stochastic matrix with exact rows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MixingMatrix {
    rows: Vec<Row>,
}

/// Who takes in whom in one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Topology {
    /// Each agent and its two neighbours, a third each.
    Ring,
    /// Each agent and the one before it, a half each.
    Left,
    /// The mean of all.
    Complete,
    /// One peer in each round: agent i takes in agent `i + 2^(round mod k)`, with `2^k` the first power of two
    /// not below the number of agents; a half each.
    Exponential,
    /// In each round every agent takes in `peers` random others, uniformly with itself. The part of `peers`
    /// behind the point is the probability of one more, drawn for each agent.
    Random {
        /// 0 to the number of other agents.
        peers: f64,
        /// Same seed and round, same peers.
        seed: u64,
    },
    /// A random matching in each round: each pair averages with this probability. Doubly stochastic.
    Matching {
        /// 0 to 1.
        probability: f64,
        /// Same seed and round, same pairs.
        seed: u64,
    },
    /// Metropolis-Hastings weights of an undirected graph: `1 / (1 + max(degree i, degree j))` for each edge,
    /// and the rest for the agent itself. Symmetric, so doubly stochastic.
    Edges(Vec<(usize, usize)>),
}

/// What is known of a matrix without applying it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MatrixReport {
    /// Number of agents.
    pub agents: usize,
    /// Whether the columns sum to 1 too, so that a round keeps the mean of all agents.
    pub doubly_stochastic: bool,
    /// `1 - |second largest eigenvalue|`; 0 when agreement is never reached, 1 when one round reaches it.
    pub spectral_gap: f64,
    /// Factor on the distance to the mean that one round guarantees (largest singular value beside the mean);
    /// the consensus distance shrinks by its square or more. Only for doubly stochastic matrices.
    pub contraction: Option<f64>,
}

/// How the number of peers, or a probability, changes over a run, as a factor on its full value.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Always the full value.
    Fixed,
    /// From the full value in the first round to `last` of it in the last, in a straight line.
    Linear {
        /// Factor in the last round, 0 or more.
        last: f64,
    },
    /// The same along half a cosine wave: slow at both ends.
    Cosine {
        /// Factor in the last round, 0 or more.
        last: f64,
    },
    /// Nothing before the last `rounds` rounds, then the full value.
    Late {
        /// Length of the window in rounds.
        rounds: u64,
    },
}

impl Schedule {
    /// The value in round `round` (from 0) of `total`.
    /// ```
    /// use pmill_snapshot::Schedule;
    /// let late = Schedule::Late { rounds: 2 };
    /// assert_eq!([6, 7, 8, 9].map(|round| late.value(0.5, round, 10)), [0.0, 0.0, 0.5, 0.5]);
    /// assert_eq!(Schedule::Linear { last: 0.0 }.value(4.0, 5, 11), 2.0);
    /// ```
    #[must_use]
    pub fn value(self, full: f64, round: u64, total: u64) -> f64 {
        let way = if total <= 1 {
            0.0
        } else {
            round.min(total - 1) as f64 / (total - 1) as f64
        };
        match self {
            Self::Fixed => full,
            Self::Linear { last } => full * (1.0 + (last - 1.0) * way),
            Self::Cosine { last } => {
                full * (last + (1.0 - last) * (1.0 + (std::f64::consts::PI * way).cos()) / 2.0)
            }
            Self::Late { rounds } => {
                if round + rounds >= total {
                    full
                } else {
                    0.0
                }
            }
        }
    }
}

/// SplitMix64: a few lines, the same on every machine.
struct Random(u64);

impl Random {
    fn new(seed: u64, round: u64) -> Self {
        let mut random = Self(seed ^ round.wrapping_mul(0xd134_2543_de82_ef95));
        random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `limit`, each as likely.
    fn below(&mut self, limit: u64) -> u64 {
        let reject_from = u64::MAX - u64::MAX % limit;
        loop {
            let word = self.next();
            if word < reject_from {
                return word % limit;
            }
        }
    }

    /// True with this probability.
    fn chance(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1_u64 << 53) as f64
    }

    fn shuffle(&mut self, list: &mut [usize]) {
        for end in (1..list.len()).rev() {
            list.swap(end, self.below(end as u64 + 1) as usize);
        }
    }
}

fn wrong(what: String) -> SnapshotError {
    SnapshotError::Matrix { what }
}

impl Topology {
    /// The matrix of one round (from 0) for `agents` agents.
    ///
    /// # Errors
    /// No agents or more than [`MAX_AGENTS`], numbers out of range, edges that name no agent.
    pub fn matrix(&self, agents: usize, round: u64) -> Result<MixingMatrix, SnapshotError> {
        if agents == 0 || agents > MAX_AGENTS {
            return Err(wrong(format!(
                "{agents} agents, expected 1 to {MAX_AGENTS}"
            )));
        }
        // Whole-number weights: how often each agent counts in a row.
        let mut counts = vec![vec![0_u64; agents]; agents];
        match self {
            Self::Ring => {
                for (agent, row) in counts.iter_mut().enumerate() {
                    // With one or two agents the neighbours fall together and count once.
                    for peer in [agent, (agent + 1) % agents, (agent + agents - 1) % agents] {
                        row[peer] = 1;
                    }
                }
            }
            Self::Left => {
                for (agent, row) in counts.iter_mut().enumerate() {
                    row[agent] = 1;
                    row[(agent + agents - 1) % agents] = 1;
                }
            }
            Self::Complete => counts.iter_mut().for_each(|row| row.fill(1)),
            Self::Exponential => {
                let powers = agents.next_power_of_two().trailing_zeros().max(1);
                let hop = 1_usize << (round % u64::from(powers));
                for (agent, row) in counts.iter_mut().enumerate() {
                    row[agent] = 1;
                    row[(agent + hop) % agents] = 1;
                }
            }
            Self::Random { peers, seed } => {
                let others = agents - 1;
                if !(0.0..=others as f64).contains(peers) {
                    return Err(wrong(format!(
                        "{peers} random peers, expected 0 to {others}"
                    )));
                }
                let mut random = Random::new(*seed, round);
                for (agent, row) in counts.iter_mut().enumerate() {
                    let mut list: Vec<usize> = (0..agents).filter(|peer| *peer != agent).collect();
                    random.shuffle(&mut list);
                    let more = random.chance(peers.fract());
                    row[agent] = 1;
                    list.iter()
                        .take(peers.floor() as usize + usize::from(more))
                        .for_each(|peer| row[*peer] = 1);
                }
            }
            Self::Matching { probability, seed } => {
                if !(0.0..=1.0).contains(probability) {
                    return Err(wrong(format!(
                        "a probability of {probability}, expected 0 to 1"
                    )));
                }
                let mut random = Random::new(*seed, round);
                let mut list: Vec<usize> = (0..agents).collect();
                random.shuffle(&mut list);
                (0..agents).for_each(|agent| counts[agent][agent] = 1);
                for pair in list.chunks_exact(2) {
                    if random.chance(*probability) {
                        counts[pair[0]][pair[1]] = 1;
                        counts[pair[1]][pair[0]] = 1;
                    }
                }
            }
            Self::Edges(edges) => return metropolis(agents, edges),
        }
        let rows = counts.iter().map(|row| {
            Row::relative(
                &row.iter()
                    .map(|count| Weight::from(*count))
                    .collect::<Vec<_>>(),
            )
        });
        Ok(MixingMatrix {
            rows: rows.collect::<Result<_, _>>()?,
        })
    }
}

fn metropolis(agents: usize, edges: &[(usize, usize)]) -> Result<MixingMatrix, SnapshotError> {
    let mut linked = vec![vec![false; agents]; agents];
    for &(a, b) in edges {
        if a >= agents || b >= agents {
            return Err(wrong(format!(
                "the edge {a} {b} names an agent beyond the {agents} there are (counted from 0)"
            )));
        }
        if a == b {
            return Err(wrong(format!("the edge {a} {b} links an agent to itself")));
        }
        linked[a][b] = true;
        linked[b][a] = true;
    }
    let degrees: Vec<usize> = linked
        .iter()
        .map(|row| row.iter().filter(|linked| **linked).count())
        .collect();
    let mut rows = Vec::with_capacity(agents);
    for agent in 0..agents {
        // Over the product of the few different denominators of this row, all weights are whole.
        let shares: Vec<Option<u128>> = (0..agents)
            .map(|peer| linked[agent][peer].then(|| 1 + degrees[agent].max(degrees[peer]) as u128))
            .collect();
        let mut weights = Vec::with_capacity(agents);
        let mut rest = Weight::from(1);
        for share in &shares {
            let weight = share.map_or(Some(Weight::from(0)), |share| Weight::ratio(1, share));
            let weight = weight.ok_or_else(|| wrong("a weight has no exact form".to_owned()))?;
            rest = rest.minus(weight).ok_or_else(|| wrong(format!("the weights of agent {agent} have no common denominator below 2^120; give a matrix file")))?;
            weights.push(weight);
        }
        weights[agent] = rest;
        rows.push(Row::relative(&weights)?);
    }
    Ok(MixingMatrix { rows })
}

impl MixingMatrix {
    /// A matrix from its entries, row by row; every row must sum to 1 within 10^-6.
    ///
    /// # Errors
    /// No rows, another number of columns than rows, rows that do not sum to 1.
    pub fn new(entries: &[Vec<Weight>]) -> Result<Self, SnapshotError> {
        if entries.is_empty() || entries.len() > MAX_AGENTS {
            return Err(wrong(format!(
                "{} rows, expected 1 to {MAX_AGENTS}",
                entries.len()
            )));
        }
        let mut rows = Vec::with_capacity(entries.len());
        for (agent, row) in entries.iter().enumerate() {
            if row.len() != entries.len() {
                return Err(wrong(format!(
                    "row {agent} has {} entries, expected {}",
                    row.len(),
                    entries.len()
                )));
            }
            rows.push(Row::fractions(row).map_err(|error| wrong(format!("row {agent}: {error}")))?);
        }
        Ok(Self { rows })
    }

    /// Reads a matrix: one row a line, entries between spaces or commas (`0.5`, `1/3`), `#` begins a comment;
    /// or a JSON array of arrays.
    ///
    /// # Errors
    /// Entries that are no weights, and those of [`MixingMatrix::new`].
    pub fn parse(text: &str) -> Result<Self, SnapshotError> {
        if text.trim_start().starts_with('[') {
            let entries: Vec<Vec<Weight>> =
                serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
            return Self::new(&entries);
        }
        let mut entries = Vec::new();
        for (position, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let row = line
                .split([' ', '\t', ',', ';'])
                .filter(|word| !word.is_empty())
                .map(str::parse)
                .collect::<Result<Vec<Weight>, _>>();
            let row = row.map_err(|error| wrong(format!("line {}: {error}", position + 1)))?;
            if !row.is_empty() {
                entries.push(row);
            }
        }
        Self::new(&entries)
    }

    /// Number of agents.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a matrix has at least one row")]
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// The weights with which an agent takes the others in.
    #[must_use]
    pub fn row(&self, agent: usize) -> &Row {
        &self.rows[agent]
    }

    /// The agents that each agent takes in, itself left out.
    #[must_use]
    pub fn peers(&self) -> Vec<Vec<usize>> {
        let of = |(agent, row): (usize, &Row)| {
            row.numbers()
                .iter()
                .enumerate()
                .filter(|(peer, number)| *peer != agent && **number > 0)
                .map(|(peer, _)| peer)
                .collect()
        };
        self.rows.iter().enumerate().map(of).collect()
    }

    /// The entries as doubles.
    #[must_use]
    pub fn entries(&self) -> Vec<Vec<f64>> {
        self.rows
            .iter()
            .map(|row| (0..self.len()).map(|peer| row.fraction(peer)).collect())
            .collect()
    }

    /// Checks columns and finds the spectral gap; cubic in the number of agents.
    #[must_use]
    pub fn report(&self) -> MatrixReport {
        let agents = self.len();
        let entries = self.entries();
        let doubly_stochastic = (0..agents).all(|column| {
            let sum: f64 = entries.iter().map(|row| row[column]).sum();
            (sum - 1.0).abs() < 1e-9
        });
        // W keeps the all-ones vector, so on what is left of the space W acts as P W does, with P the
        // projection off that vector; its spectral radius is the second largest modulus of W.
        let mut rest = entries;
        let means: Vec<f64> = (0..agents)
            .map(|column| rest.iter().map(|row| row[column]).sum::<f64>() / agents as f64)
            .collect();
        rest.iter_mut().for_each(|row| {
            row.iter_mut()
                .zip(&means)
                .for_each(|(entry, mean)| *entry -= mean)
        });
        let second = spectral_radius(&rest);
        let contraction = doubly_stochastic.then(|| {
            let transposed: Vec<Vec<f64>> = (0..agents)
                .map(|column| rest.iter().map(|row| row[column]).collect())
                .collect();
            spectral_radius(&multiply(&transposed, &rest))
                .sqrt()
                .min(1.0)
        });
        MatrixReport {
            agents,
            doubly_stochastic,
            spectral_gap: (1.0 - second).clamp(0.0, 1.0),
            contraction,
        }
    }
}

fn multiply(a: &[Vec<f64>], b: &[Vec<f64>]) -> Vec<Vec<f64>> {
    let mut product = vec![vec![0.0; b[0].len()]; a.len()];
    for (out, row) in product.iter_mut().zip(a) {
        for (factor, other) in row.iter().zip(b) {
            if *factor != 0.0 {
                out.iter_mut()
                    .zip(other)
                    .for_each(|(sum, entry)| *sum += factor * entry);
            }
        }
    }
    product
}

/// `lim |M^k|^(1/k)` by repeated squaring, scaled so that nothing overflows.
fn spectral_radius(matrix: &[Vec<f64>]) -> f64 {
    const SQUARINGS: u32 = 26;
    let mut power = matrix.to_vec();
    let mut log_scale = 0.0; // the power is exp(log_scale) times what is held
    for step in 0..=SQUARINGS {
        let norm = power
            .iter()
            .flatten()
            .map(|entry| entry * entry)
            .sum::<f64>()
            .sqrt();
        // The square of a matrix of length 1 is as good as zero: its powers vanish but for rounding.
        if norm < 1e-13 {
            return 0.0;
        }
        power.iter_mut().flatten().for_each(|entry| *entry /= norm);
        log_scale += norm.ln();
        if step < SQUARINGS {
            power = multiply(&power, &power);
            log_scale *= 2.0;
        }
    }
    f64::exp(log_scale / f64::from(1_u32 << SQUARINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gap(topology: &Topology, agents: usize) -> f64 {
        topology.matrix(agents, 0).unwrap().report().spectral_gap
    }

    #[test]
    fn spectral_gaps_are_those_of_the_textbook() {
        // Eigenvalues of the ring are (1 + 2 cos(2 pi k / m)) / 3.
        let second = (1.0 + 2.0 * (std::f64::consts::TAU / 8.0).cos()) / 3.0;
        assert!((gap(&Topology::Ring, 8) - (1.0 - second)).abs() < 1e-6);
        // Eigenvalues of "left" are (1 + w) / 2 for the roots of unity w.
        let second = (std::f64::consts::PI / 5.0).cos();
        assert!((gap(&Topology::Left, 5) - (1.0 - second)).abs() < 1e-6);
        assert!((gap(&Topology::Complete, 7) - 1.0).abs() < 1e-9);
        // Two pairs that never meet.
        assert!(gap(&Topology::Edges(vec![(0, 1), (2, 3)]), 4) < 1e-6);
        // A matching alone never reaches agreement among four.
        assert!(
            gap(
                &Topology::Matching {
                    probability: 1.0,
                    seed: 1
                },
                4
            ) < 1e-6
        );
        assert!(
            gap(
                &Topology::Random {
                    peers: 0.0,
                    seed: 1
                },
                4
            ) < 1e-6
        );
    }

    #[test]
    fn the_exponential_graph_reaches_the_mean_in_log_rounds() {
        let mut product = Topology::Exponential.matrix(8, 0).unwrap().entries();
        for round in 1..3 {
            product = multiply(
                &Topology::Exponential.matrix(8, round).unwrap().entries(),
                &product,
            );
        }
        assert!(product.iter().flatten().all(|entry| *entry == 0.125));
    }

    #[test]
    fn metropolis_weights_are_symmetric_and_exact() {
        // A path 0 - 1 - 2: degrees 1, 2, 1.
        let matrix = Topology::Edges(vec![(0, 1), (1, 2)]).matrix(3, 0).unwrap();
        assert_eq!(matrix.row(0).numbers(), [2, 1, 0]);
        assert_eq!(matrix.row(1).numbers(), [1, 1, 1]);
        assert_eq!(matrix.row(2).numbers(), [0, 1, 2]);
        assert!(matrix.report().doubly_stochastic);
        assert!(Topology::Edges(vec![(0, 3)]).matrix(3, 0).is_err());
        assert!(Topology::Edges(vec![(1, 1)]).matrix(3, 0).is_err());
    }

    #[test]
    fn random_peers_follow_seed_and_round() {
        let topology = Topology::Random {
            peers: 1.5,
            seed: 3,
        };
        assert_eq!(
            topology.matrix(16, 4).unwrap(),
            topology.matrix(16, 4).unwrap()
        );
        assert_ne!(
            topology.matrix(16, 4).unwrap(),
            topology.matrix(16, 5).unwrap()
        );
        let mut total = 0;
        for round in 0..200 {
            for peers in topology.matrix(16, round).unwrap().peers() {
                assert!((1..=2).contains(&peers.len()));
                total += peers.len();
            }
        }
        // 3,200 draws of a mean of 1.5: three standard deviations are 0.027.
        let mean = f64::from(u32::try_from(total).unwrap()) / 3200.0;
        assert!((mean - 1.5).abs() < 0.027, "{mean}");
        assert!(
            Topology::Random {
                peers: 16.0,
                seed: 0
            }
            .matrix(16, 0)
            .is_err()
        );
    }

    #[test]
    fn matrices_read_from_text_and_bad_rows_are_named() {
        let matrix = MixingMatrix::parse("# two agents\n0.5 0.5\n1/3, 2/3\n").unwrap();
        assert_eq!(matrix.row(1).numbers(), [1, 2]);
        assert!(!matrix.report().doubly_stochastic);
        assert_eq!(
            matrix,
            MixingMatrix::parse("[[0.5, 0.5], [\"1/3\", \"2/3\"]]").unwrap()
        );
        let error = MixingMatrix::parse("0.5 0.5\n0.5 0.6")
            .unwrap_err()
            .to_string();
        assert!(error.contains("row 1") && error.contains("1.1"), "{error}");
        assert!(MixingMatrix::parse("0.5 0.5").is_err());
        assert!(MixingMatrix::parse("1.5 -0.5\n0 1").is_err());
        assert!(MixingMatrix::parse("").is_err());
    }

    #[test]
    fn schedules_start_and_end_where_they_say() {
        for schedule in [
            Schedule::Linear { last: 0.25 },
            Schedule::Cosine { last: 0.25 },
        ] {
            assert_eq!(schedule.value(2.0, 0, 9), 2.0);
            assert!((schedule.value(2.0, 8, 9) - 0.5).abs() < 1e-12);
            assert!((schedule.value(2.0, 4, 9) - 1.25).abs() < 1e-12);
        }
        assert_eq!(Schedule::Fixed.value(0.2, 5, 9), 0.2);
    }
}
