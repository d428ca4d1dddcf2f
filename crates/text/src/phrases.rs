//! Multi-word terms, matched over tokens: leftmost first, then longest, without overlap.

use hashbrown::HashMap;

use crate::TextError;
use crate::resources::Resource;
use crate::terms::Terms;

/// The terms of a list as a tree over token numbers.
pub(crate) struct Matcher {
    /// Tokens that occur in a term; a token's number here is its symbol.
    symbols: Terms,
    /// From (node, symbol) to the next node; node 0 is the root.
    edges: HashMap<(u32, u32), u32>,
    /// By node: the term that ends there.
    ends: Vec<Option<u32>>,
    /// Names of the terms.
    names: Vec<String>,
    /// Whether single tokens outside every match are features.
    keeps_others: bool,
}

/// A match: which term, and how many tokens it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Match {
    pub(crate) term: u32,
    pub(crate) tokens: usize,
}

impl Matcher {
    /// Reads `term` or `term<TAB>name` lines; `tokens_of` cuts a term as it cuts text.
    pub(crate) fn read(
        resource: &Resource,
        keeps_others: bool,
        mut tokens_of: impl FnMut(&str) -> Result<Vec<String>, TextError>,
    ) -> Result<Self, TextError> {
        let mut matcher = Self {
            symbols: Terms::default(),
            edges: HashMap::new(),
            ends: vec![None],
            names: Vec::new(),
            keeps_others,
        };
        for (number, line) in resource.lines() {
            if line.trim().is_empty() {
                continue;
            }
            let (term, name) = match line.split_once('\t') {
                Some((term, name)) => (term, Some(name.trim())),
                None => (line, None),
            };
            if name.is_some_and(|name| name.is_empty() || name.contains('\t')) {
                return Err(resource.bad_line(number, "a term, or a term, one tab and its name"));
            }
            let tokens = tokens_of(term)?;
            if tokens.is_empty() {
                return Err(resource.bad_line(
                    number,
                    format!(
                        "a term with at least one token, but the tokenizer finds none in `{term}`"
                    ),
                ));
            }
            let name = name.map_or_else(|| tokens.join(" "), str::to_owned);
            if let Some(before) = matcher.add(&tokens, &name)? {
                return Err(resource.bad_line(
                    number,
                    format!("one name for a term, but `{term}` has `{before}` and `{name}`"),
                ));
            }
        }
        Ok(matcher)
    }

    /// Adds a term; gives the other name if it is there with another one.
    fn add(&mut self, tokens: &[String], name: &str) -> Result<Option<String>, TextError> {
        let mut node = 0_u32;
        for token in tokens {
            let symbol = self.symbols.insert(token)?;
            let next = self.ends.len() as u32;
            node = *self.edges.entry((node, symbol)).or_insert(next);
            if node == next {
                self.ends.push(None);
            }
        }
        if let Some(term) = self.ends[node as usize] {
            let before = &self.names[term as usize];
            return Ok((before != name).then(|| before.clone()));
        }
        self.ends[node as usize] = Some(self.names.len() as u32);
        self.names.push(name.to_owned());
        Ok(None)
    }

    /// The number of a token that occurs in a term.
    pub(crate) fn symbol(&self, token: &str) -> Option<u32> {
        self.symbols.get(token)
    }

    pub(crate) fn symbol_count(&self) -> usize {
        self.symbols.len()
    }

    /// The token of a symbol.
    pub(crate) fn token(&self, symbol: u32) -> &str {
        self.symbols.term(symbol)
    }

    pub(crate) fn term_count(&self) -> usize {
        self.names.len()
    }

    /// The feature that a term becomes.
    pub(crate) fn name(&self, term: u32) -> &str {
        &self.names[term as usize]
    }

    pub(crate) fn keeps_others(&self) -> bool {
        self.keeps_others
    }

    /// The longest term that starts with the first symbol; `None` stands for a token of no term.
    pub(crate) fn longest(&self, symbols: impl Iterator<Item = Option<u32>>) -> Option<Match> {
        let mut node = 0;
        let mut best = None;
        for (index, symbol) in symbols.enumerate() {
            let Some(&next) = symbol.and_then(|symbol| self.edges.get(&(node, symbol))) else {
                break;
            };
            node = next;
            if let Some(term) = self.ends[node as usize] {
                best = Some(Match {
                    term,
                    tokens: index + 1,
                });
            }
        }
        best
    }
}
