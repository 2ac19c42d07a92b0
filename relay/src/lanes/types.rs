//! Aggregate types by number, so that a row carries a small integer and no text.

use std::collections::HashMap;

/// The number of an aggregate type among [`TypeNames`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TypeIndex(u32);

impl TypeIndex {
    /// As a place in a list.
    #[must_use]
    pub const fn place(self) -> usize {
        self.0 as usize
    }
}

impl From<usize> for TypeIndex {
    fn from(place: usize) -> Self {
        Self(u32::try_from(place).unwrap_or(u32::MAX))
    }
}

/// The aggregate types that a session has met, in the order in which it met them.
#[derive(Debug, Clone, Default)]
pub struct TypeNames {
    indexes: HashMap<String, TypeIndex>,
    names: Vec<String>,
}

impl TypeNames {
    /// The number of a type; a new one if it was not met before.
    pub fn index(&mut self, aggregate_type: &str) -> TypeIndex {
        if let Some(index) = self.indexes.get(aggregate_type) {
            return *index;
        }
        let index = TypeIndex::from(self.names.len());
        self.names.push(aggregate_type.to_owned());
        self.indexes.insert(aggregate_type.to_owned(), index);
        index
    }

    /// The type with this number.
    #[must_use]
    pub fn name(&self, index: TypeIndex) -> &str {
        self.names.get(index.place()).map_or("", String::as_str)
    }

    /// All types so far, with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (TypeIndex, &str)> {
        self.names.iter().enumerate().map(|(place, name)| (TypeIndex::from(place), name.as_str()))
    }
}
