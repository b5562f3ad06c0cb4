//! Listings in pages.
//!
//! A listing is whole or it fails: a toolstack forgets a disk that a listing left out. So it ends
//! only where the array says so (an empty page with a next link is not the end), begins anew when
//! the number of objects changed under an offset, and notices an array that leads it in a circle.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;

use crate::outcome::{Class, Failure, Outcome};

/// A page and where the next one is.
#[derive(Clone, Debug)]
pub struct Page<T, C> {
    /// The objects; may be none although there is more.
    pub items: Vec<T>,
    /// Where to go on: an offset, a token, a link. `None` is the end.
    pub next: Option<C>,
    /// How many there are in all, if the array says so.
    pub total: Option<u64>,
}

impl<T, C> Page<T, C> {
    /// A listing that has one page.
    pub fn whole(items: Vec<T>) -> Self {
        Self { items, next: None, total: None }
    }
}

/// Most pages of a listing.
const PAGES: usize = 10_000;
/// How often a listing begins anew that changes meanwhile.
const AGAIN: u32 = 3;

/// All objects of a listing, from `first` on. `fetch` gets one page.
pub async fn all<T, C, F>(
    what: &str,
    first: C,
    mut fetch: impl FnMut(C) -> F + Send,
) -> Outcome<Vec<T>>
where
    C: Clone + Eq + Hash + Debug + Send,
    F: Future<Output = Outcome<Page<T, C>>> + Send,
    T: Send,
{
    let mut again = 0;
    'anew: loop {
        let mut items = Vec::new();
        let mut seen = HashSet::from([first.clone()]);
        let mut next = Some(first.clone());
        let mut total = None;
        while let Some(cursor) = next {
            let page = fetch(cursor).await?;
            items.extend(page.items);
            if total.is_some() && page.total.is_some() && page.total != total {
                // With offsets, what moved up by a deletion would be left out.
                again += 1;
                if again > AGAIN {
                    return Err(changed(what, again));
                }
                continue 'anew;
            }
            total = total.or(page.total);
            next = page.next;
            if let Some(cursor) = &next
                && (!seen.insert(cursor.clone()) || seen.len() > PAGES)
            {
                return Err(Failure::new(Class::Garbled)
                    .fact(format!(
                        "the array lists {what} in a circle, after {} objects",
                        items.len()
                    ))
                    .hint("this is a defect of the array: look for a newer firmware"));
            }
        }
        if let Some(total) = total
            && (items.len() as u64) < total
        {
            return Err(Failure::new(Class::Garbled).fact(format!(
                "the listing of {what} ended after {} of {total} objects",
                items.len()
            )));
        }
        return Ok(items);
    }
}

/// All objects of a listing that is sorted by a key and read by offset and limit. `fetch` gets the
/// page at an offset, `key` is what it is sorted by.
///
/// Each page begins with the last object of the one before: if that is another one now, something
/// moved under the offset, and the listing begins anew. So nothing that is there all the time is left
/// out, and no count has to be asked for.
pub async fn by_offset<T, F>(
    what: &str,
    limit: usize,
    key: impl Fn(&T) -> &str + Send,
    mut fetch: impl FnMut(usize) -> F + Send,
) -> Outcome<Vec<T>>
where
    F: Future<Output = Outcome<Vec<T>>> + Send,
    T: Send,
{
    let mut again = 0;
    'anew: loop {
        let mut items: Vec<T> = Vec::new();
        for _ in 0..PAGES {
            let offset = items.len().saturating_sub(1);
            let page = fetch(offset).await?;
            let whole = page.len() >= limit;
            let mut page = page.into_iter();
            if let Some(last) = items.last()
                && page.next().is_none_or(|first| key(&first) != key(last))
            {
                again += 1;
                if again > AGAIN {
                    return Err(changed(what, again));
                }
                continue 'anew;
            }
            items.extend(page);
            if !whole || limit < 2 {
                return Ok(items);
            }
        }
        return Err(Failure::new(Class::Garbled)
            .fact(format!("the listing of {what} has no end, after {} objects", items.len()))
            .hint("this is a defect of the array: look for a newer firmware"));
    }
}

/// Where a listing goes on that gives a token with each page, or is read by offset where it does not.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cursor {
    /// The first page.
    Begin,
    /// What the array gave with the page before.
    Token(String),
    /// How many were read.
    Offset(usize),
}

impl Cursor {
    /// Where it goes on after a page of `count` objects, by what the array said of more and of a token.
    pub fn after(&self, count: usize, more: Option<bool>, token: Option<String>) -> Option<Self> {
        let read = if let Self::Offset(read) = self { *read } else { 0 };
        match (more, token) {
            (Some(false), _) | (None, None) => None,
            (_, Some(token)) => Some(Self::Token(token)),
            (Some(true), None) => Some(Self::Offset(read + count)),
        }
    }
}

fn changed(what: &str, again: u32) -> Failure {
    Failure::new(Class::Busy)
        .object(what)
        .fact(format!("the listing of {what} changed {again} times while it was read"))
        .hint("try again when fewer are made and removed at the same time")
}

/// The header `Content-Range: 0-999/2100`: first, last, and how many there are, if it is known.
pub fn content_range(header: &str) -> Option<(u64, u64, Option<u64>)> {
    let text = header.trim();
    let range = text.rsplit_once(' ').map_or(text, |(_, range)| range);
    let (range, total) = range.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let total = if total == "*" { None } else { Some(total.parse().ok()?) };
    let (first, last) = (first.parse().ok()?, last.parse().ok()?);
    (first <= last).then_some((first, last, total))
}

/// The offset after this page, by its `Content-Range`.
pub fn offset_after(header: Option<&str>) -> (Option<u64>, Option<u64>) {
    match header.and_then(content_range) {
        Some((_, last, Some(total))) if last + 1 < total => (Some(last + 1), Some(total)),
        Some((_, _, total)) => (None, total),
        None => (None, None),
    }
}
