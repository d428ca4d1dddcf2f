//! Token to lemma: a two-column list, or WordNet's noun rule as NLTK applies it.

use std::path::Path;

use hashbrown::{HashMap, HashSet};

use crate::TextError;
use crate::resources::Resource;

/// WordNet's noun endings and what replaces them, in WordNet's order.
const NOUN_RULES: [(&str, &str); 9] = [
    ("s", ""),
    ("ses", "s"),
    ("ves", "f"),
    ("xes", "x"),
    ("zes", "z"),
    ("ches", "ch"),
    ("shes", "sh"),
    ("men", "man"),
    ("ies", "y"),
];

/// A pure function from token to lemma.
pub(crate) enum Lemmatizer {
    Identity,
    List(HashMap<Box<str>, Box<str>>),
    WordNet(WordNetNouns),
}

impl Lemmatizer {
    /// Reads `form<TAB>lemma` lines; blank lines are skipped.
    pub(crate) fn from_list(resource: &Resource) -> Result<Self, TextError> {
        let mut lemmas: HashMap<Box<str>, Box<str>> = HashMap::new();
        for (number, line) in resource.lines() {
            if line.trim().is_empty() {
                continue;
            }
            let pair = line
                .split_once('\t')
                .map(|(form, lemma)| (form.trim(), lemma.trim()))
                .filter(|(form, lemma)| {
                    !form.is_empty() && !lemma.is_empty() && !lemma.contains('\t')
                });
            let Some((form, lemma)) = pair else {
                return Err(
                    resource.bad_line(number, "two columns, form and lemma, with one tab between")
                );
            };
            if let Some(before) = lemmas.insert(form.into(), lemma.into())
                && *before != *lemma
            {
                return Err(resource.bad_line(
                    number,
                    format!("one lemma for a form, but `{form}` has `{before}` and `{lemma}`"),
                ));
            }
        }
        Ok(Self::List(lemmas))
    }

    /// The lemma of a token; `buffer` is where a new word is built.
    pub(crate) fn lemma<'a>(&'a self, token: &'a str, buffer: &'a mut String) -> &'a str {
        match self {
            Self::Identity => token,
            Self::List(lemmas) => lemmas.get(token).map_or(token, |lemma| lemma),
            Self::WordNet(nouns) => nouns.lemma(token, buffer),
        }
    }
}

/// The nouns of WordNet and their irregular forms.
pub(crate) struct WordNetNouns {
    nouns: HashSet<Box<str>>,
    exceptions: HashMap<Box<str>, Vec<Box<str>>>,
}

impl WordNetNouns {
    /// Reads `index.noun` and `noun.exc` of a WordNet folder; gives their digests too.
    pub(crate) fn read(folder: &Path) -> Result<(Self, Vec<String>), TextError> {
        let index = Resource::read(
            "WordNet noun index (Debian: package wordnet-base)",
            &folder.join("index.noun"),
        )?;
        let exceptions = Resource::read("WordNet noun exceptions", &folder.join("noun.exc"))?;
        let digests = vec![index.digest(), exceptions.digest()];
        let nouns = Self::parse(index.text(), exceptions.text());
        Ok((nouns, digests))
    }

    /// `index`: lines that start with a blank are the licence, else the first column is a noun.
    /// `exceptions`: form, then its base forms; the last line of a form holds.
    fn parse(index: &str, exceptions: &str) -> Self {
        let nouns = index
            .lines()
            .filter(|line| !line.starts_with(' '))
            .filter_map(|line| line.split(' ').next())
            .filter(|noun| !noun.is_empty())
            .map(Box::from)
            .collect();
        let exceptions = exceptions
            .lines()
            .filter_map(|line| {
                let mut words = line.split_whitespace();
                let form = words.next()?;
                Some((Box::from(form), words.map(Box::from).collect()))
            })
            .collect();
        Self { nouns, exceptions }
    }

    /// The candidates are the word and its exceptions or else its forms by the noun rules; of those
    /// that are nouns the shortest in code points, the first on ties; the word if none is a noun.
    fn lemma<'a>(&'a self, word: &'a str, buffer: &'a mut String) -> &'a str {
        /// Where the best candidate so far comes from.
        enum Best<'a> {
            Listed(&'a str),
            Rule(usize),
        }
        let mut best: Option<(usize, Best<'a>)> = None;
        let mut offer = |candidate: &str, from: Best<'a>| {
            let length = candidate.chars().count();
            if best.as_ref().is_none_or(|(shortest, _)| length < *shortest)
                && self.nouns.contains(candidate)
            {
                best = Some((length, from));
            }
        };
        offer(word, Best::Listed(word));
        match self.exceptions.get(word) {
            Some(bases) => {
                for base in bases {
                    offer(base, Best::Listed(base));
                }
            }
            None => {
                for (rule, (ending, replacement)) in NOUN_RULES.iter().enumerate() {
                    if let Some(stem) = word.strip_suffix(ending) {
                        apply(stem, replacement, buffer);
                        offer(buffer, Best::Rule(rule));
                    }
                }
            }
        }
        match best {
            None => word,
            Some((_, Best::Listed(candidate))) => candidate,
            Some((_, Best::Rule(rule))) => {
                let (ending, replacement) = NOUN_RULES[rule];
                let stem = word.strip_suffix(ending).unwrap_or(word);
                apply(stem, replacement, buffer);
                buffer
            }
        }
    }
}

fn apply(stem: &str, replacement: &str, buffer: &mut String) {
    buffer.clear();
    buffer.push_str(stem);
    buffer.push_str(replacement);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A hand-made index in WordNet's layout.
    fn small() -> WordNetNouns {
        WordNetNouns::parse(
            "  1 a licence line\ndog n 1 0\ndogs n 1 0\nbox n 1 0\nman n 1 0\nwolf n 1 0\nlady n 1 0\n\
             glass n 1 0\nglasses n 1 0\nmouse n 1 0\nmice n 1 0\naxis n 1 0\nax n 1 0\nchurch n 1 0\n",
            "mice mouse\naxes ax axis\nwolves wolf\ngeese goose\n",
        )
    }

    fn lemma(word: &str) -> String {
        small().lemma(word, &mut String::new()).to_owned()
    }

    #[test]
    fn the_shortest_noun_wins() {
        // Both are nouns: the shorter one is the lemma.
        assert_eq!(lemma("dogs"), "dog");
        assert_eq!(lemma("glasses"), "glass");
        // `axes` has two exceptions, and neither rule is tried.
        assert_eq!(lemma("axes"), "ax");
        // A noun that is its own shortest candidate: mouse is longer than mice.
        assert_eq!(lemma("mice"), "mice");
    }

    #[test]
    fn rules_apply_once_and_only_to_nouns() {
        assert_eq!(lemma("boxes"), "box");
        assert_eq!(lemma("men"), "man");
        assert_eq!(lemma("ladies"), "lady");
        assert_eq!(lemma("churches"), "church");
        assert_eq!(lemma("wolves"), "wolf");
        // dogss -> dogs only after a second round would it be dog.
        assert_eq!(lemma("dogss"), "dogs");
    }

    #[test]
    fn a_word_without_a_noun_stays() {
        assert_eq!(lemma("running"), "running");
        // The exception `goose` is not in the index.
        assert_eq!(lemma("geese"), "geese");
        // `s` leaves nothing, and nothing is no noun.
        assert_eq!(lemma("s"), "s");
        assert_eq!(lemma(""), "");
    }

    #[test]
    fn a_list_refuses_lines_that_are_not_two_columns() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lemmas.tsv");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Lemmatizer::from_list(&Resource::read("lemmas", &path).unwrap())
        };
        let list = read("dogs\tdog\n\nmice\tmouse\r\n").unwrap();
        assert_eq!(list.lemma("mice", &mut String::new()), "mouse");
        assert_eq!(list.lemma("cats", &mut String::new()), "cats");
        for bad in [
            "dogs dog",
            "dogs\t",
            "\tdog",
            "dogs\tdog\tnoun",
            "dogs\tdog\ndogs\tdoge",
        ] {
            assert!(
                matches!(read(bad), Err(TextError::BadLine { .. })),
                "{bad:?}"
            );
        }
    }
}
