//! Who mixes with whom in a round: topologies, random peers and schedules.

use crate::error::SnapshotError;
use crate::matrix::{MAX_AGENTS, MixingMatrix};
use crate::weights::{Row, Weight};
use serde::{Deserialize, Serialize};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::multiply;

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
