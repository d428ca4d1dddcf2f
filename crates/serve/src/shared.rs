//! A value behind a type that is quickly looked through.
//!
//! Whether a future may move between threads is decided by the compiler from the types that it holds,
//! anew in every method of an asynchronous trait. For DataFusion's plans and sessions, which hold
//! hundreds of types, that takes seconds a method; [`Shared`] answers at once.

use std::any::Any;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::sync::Arc;

/// A value that is held by many, like [`Arc`].
pub struct Shared<T> {
    value: Arc<dyn Any + Send + Sync>,
    // Not a `T`, so that nobody has to look into it.
    kind: PhantomData<fn() -> T>,
}

impl<T: Any + Send + Sync> Shared<T> {
    /// Holds a value.
    pub fn new(value: T) -> Self {
        Self {
            value: Arc::new(value),
            kind: PhantomData,
        }
    }
}

impl<T: Any> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self.value.downcast_ref() {
            Some(value) => value,
            None => unreachable!("it holds the value that it was made of"),
        }
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            kind: PhantomData,
        }
    }
}

impl<T: Any + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_see_the_same_value() {
        let one = Shared::new(vec![1, 2]);
        let other = one.clone();
        assert!(std::ptr::eq(&*one, &*other));
        assert_eq!(format!("{other:?}"), "[1, 2]");
    }
}
