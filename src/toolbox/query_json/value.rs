//! The values that programs work on. JSON values, shared instead of copied, each container counted by the meter for
//! as long as it lives and never nested deeper than the stack can take apart. What can be done with them is in
//! `access` (reaching in), `arithmetic` (operators and order) and `json` (reading and writing).

use std::{
    borrow::Borrow,
    collections::HashMap,
    fmt,
    hash::{Hash, Hasher},
    rc::Rc,
};

use super::{
    json,
    meter::{Charge, Stop, stop, tick},
};

/// Containers inside each other. Taking a value apart, comparing and writing it go as deep.
const DEPTH_MAX: u32 = 400;
/// Places that a path goes on without a container getting smaller: through nulls and slices. The path is a list that
/// is taken apart by recursion.
const HOPS_MAX: u32 = 50_000;
/// Objects of more members find them by a table.
const MEMBERS_WITHOUT_TABLE: usize = 16;
/// How much of a value an error shows.
const SHOWN_BYTES_MAX: usize = 120;

/// A JSON value. Integers beyond 64 bits are floating-point numbers.
#[derive(Clone, Debug)]
pub(super) enum Val {
    /// Null, and how many hops through nothing led to it.
    Null(u32),
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(Rc<Text>),
    Arr(Rc<Items>),
    Obj(Rc<Members>),
}

pub(super) type Error = jaq_core::Error<Val>;
pub(super) type ValR = jaq_core::ValR<Val>;

#[derive(Debug)]
pub(super) struct Text {
    pub(super) text: String,
    charge: Charge,
    hops: u32,
}

#[derive(Debug, Default)]
pub(super) struct Items {
    pub(super) items: Vec<Val>,
    charge: Charge,
    depth: u32,
    hops: u32,
}

/// The members of an object in the order in which they came.
#[derive(Debug, Default)]
pub(super) struct Members {
    members: Vec<(Rc<Text>, Val)>,
    table: Option<HashMap<Key, usize>>,
    charge: Charge,
    depth: u32,
}

/// A member's name as a key of the table.
#[derive(Debug)]
struct Key(Rc<Text>);

impl Val {
    pub(super) const NULL: Self = Self::Null(0);

    pub(super) fn text(text: impl Into<String>) -> Self {
        Self::Str(Rc::new(Text::new(text.into(), 0)))
    }

    pub(super) fn array(items: Vec<Self>) -> Self {
        Self::Arr(Rc::new(Items::new(items, 0)))
    }

    pub(super) fn object(members: Members) -> Self {
        Self::Obj(Rc::new(members))
    }

    fn depth(&self) -> u32 {
        match self {
            Self::Arr(items) => items.depth,
            Self::Obj(members) => members.depth,
            _ => 0,
        }
    }

    pub(super) fn hops(&self) -> u32 {
        match self {
            Self::Null(hops) => *hops,
            Self::Str(text) => text.hops,
            Self::Arr(items) => items.hops,
            _ => 0,
        }
    }

    /// One hop further than this value.
    pub(super) fn hop(&self) -> Result<u32, Error> {
        let hops = self.hops() + 1;
        if hops > HOPS_MAX {
            return Err(Error::str(format_args!("a path of more than {HOPS_MAX} steps through nulls or slices")));
        }
        Ok(hops)
    }

    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null(_) => "null",
            Self::Bool(_) => "boolean",
            Self::Int(_) | Self::Float(_) => "number",
            Self::Str(_) => "string",
            Self::Arr(_) => "array",
            Self::Obj(_) => "object",
        }
    }
}

impl fmt::Display for Val {
    /// For errors only: the beginning of the value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&json::beginning(self, SHOWN_BYTES_MAX))
    }
}

impl Text {
    pub(super) fn new(text: String, hops: u32) -> Self {
        Self { charge: Charge::new(64 + text.capacity()), text, hops }
    }

    /// Appends to a text that may be shared.
    pub(super) fn append(mut this: Rc<Self>, more: &str) -> Rc<Self> {
        match Rc::get_mut(&mut this) {
            Some(own) => {
                // What growing may reserve is counted before it is.
                own.charge.set(64 + (own.text.len() + more.len()).max(own.text.capacity()) * 2);
                own.text.push_str(more);
                own.charge.set(64 + own.text.capacity());
                own.hops = 0;
                this
            }
            None => {
                let charge = Charge::new(64 + this.text.len() + more.len());
                let text = [this.text.as_str(), more].concat();
                Rc::new(Self { text, charge, hops: 0 })
            }
        }
    }
}

impl Items {
    pub(super) fn new(items: Vec<Val>, hops: u32) -> Self {
        let charge = Charge::new(64 + items.capacity() * size_of::<Val>());
        let depth = deeper(items.iter().map(Val::depth).max());
        Self { items, charge, depth, hops }
    }

    /// The items of an array that may be shared, for changing them.
    pub(super) fn own(this: &mut Rc<Self>) -> &mut Self {
        if Rc::get_mut(this).is_none() {
            let charge = Charge::new(64 + size_of_val(this.items.as_slice()));
            let items = this.items.clone();
            *this = Rc::new(Self { items, charge, depth: this.depth, hops: 0 });
        }
        Rc::get_mut(this).unwrap_or_else(|| unreachable!("it was made a line above"))
    }

    /// Takes the items out, copied where they are shared, and what they are charged with.
    pub(super) fn take(mut this: Rc<Self>) -> (Vec<Val>, Charge) {
        let own = Self::own(&mut this);
        (std::mem::take(&mut own.items), std::mem::take(&mut own.charge))
    }

    pub(super) fn push(&mut self, value: Val) {
        self.deepen(&value);
        self.reserve(1);
        self.items.push(value);
    }

    pub(super) fn extend(&mut self, more: &[Val], depth_of: &Self) {
        self.reserve(more.len());
        self.items.extend_from_slice(more);
        self.depth = self.depth.max(depth_of.depth);
    }

    /// Says that `value` will be one of the items. The depth never falls: it is a bound, and finding it anew would
    /// make every small change as long as the array.
    pub(super) fn deepen(&mut self, value: &Val) {
        self.depth = self.depth.max(deeper(Some(value.depth())));
    }

    /// Counts room for `more` items before it is taken, and takes it.
    pub(super) fn reserve(&mut self, more: usize) {
        let items = self.items.len().saturating_add(more);
        if items > self.items.capacity() {
            let capacity = items.max(self.items.capacity() * 2);
            self.charge.set(64_usize.saturating_add(capacity.saturating_mul(size_of::<Val>())));
            self.items.reserve_exact(capacity - self.items.len());
        }
    }
}

impl Members {
    const MEMBER_BYTES: usize = size_of::<(Rc<Text>, Val)>() + size_of::<(Key, usize)>() + 8;

    pub(super) fn get(&self, name: &str) -> Option<&Val> {
        self.position(name).map(|at| &self.members[at].1)
    }

    pub(super) fn get_mut(&mut self, name: &str) -> Option<&mut Val> {
        self.position(name).map(|at| &mut self.members[at].1)
    }

    pub(super) fn iter(&self) -> impl ExactSizeIterator<Item = (&Rc<Text>, &Val)> {
        self.members.iter().map(|(name, value)| (name, value))
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn insert(&mut self, name: Rc<Text>, value: Val) {
        self.depth = self.depth.max(deeper(Some(value.depth())));
        if let Some(at) = self.position(&name.text) {
            self.members[at].1 = value;
            return;
        }
        self.charge.add(Self::MEMBER_BYTES + if self.members.is_empty() { 128 } else { 0 });
        if let Some(table) = &mut self.table {
            table.insert(Key(Rc::clone(&name)), self.members.len());
        }
        self.members.push((name, value));
        if self.table.is_none() && self.members.len() > MEMBERS_WITHOUT_TABLE {
            self.build_table();
        }
    }

    pub(super) fn remove(&mut self, name: &str) {
        if let Some(at) = self.position(name) {
            self.members.remove(at);
            self.charge.sub(Self::MEMBER_BYTES);
            if self.table.take().is_some() {
                self.build_table();
            }
        }
    }

    /// The members of an object that may be shared, for changing them.
    pub(super) fn own(this: &mut Rc<Self>) -> &mut Self {
        if Rc::get_mut(this).is_none() {
            let charge = Charge::new(128 + this.members.len() * Self::MEMBER_BYTES);
            let mut copy = Self { members: this.members.clone(), table: None, charge, depth: this.depth };
            if copy.members.len() > MEMBERS_WITHOUT_TABLE {
                copy.build_table();
            }
            *this = Rc::new(copy);
        }
        Rc::get_mut(this).unwrap_or_else(|| unreachable!("it was made a line above"))
    }

    /// Takes the members out, copied where they are shared, and what they are charged with.
    pub(super) fn take(mut this: Rc<Self>) -> (Vec<(Rc<Text>, Val)>, Charge) {
        let own = Self::own(&mut this);
        (std::mem::take(&mut own.members), std::mem::take(&mut own.charge))
    }

    fn build_table(&mut self) {
        let keys = self.members.iter().enumerate().map(|(at, (name, _))| (Key(Rc::clone(name)), at));
        self.table = Some(keys.collect());
    }

    fn position(&self, name: &str) -> Option<usize> {
        match &self.table {
            Some(table) => table.get(name).copied(),
            None => self.members.iter().position(|(member, _)| member.text == name),
        }
    }

    /// The members by name, for comparing.
    pub(super) fn sorted(&self) -> Vec<(&str, &Val)> {
        let mut members: Vec<_> = self.members.iter().map(|(name, value)| (name.text.as_str(), value)).collect();
        members.sort_unstable_by_key(|(name, _)| *name);
        members
    }
}

impl FromIterator<(Rc<Text>, Val)> for Members {
    fn from_iter<I: IntoIterator<Item = (Rc<Text>, Val)>>(members: I) -> Self {
        let mut this = Self::default();
        for (name, value) in members {
            tick();
            this.insert(name, value);
        }
        this
    }
}

impl FromIterator<Self> for Val {
    fn from_iter<I: IntoIterator<Item = Self>>(values: I) -> Self {
        let mut array = Items::default();
        for value in values {
            tick();
            array.push(value);
        }
        Self::Arr(Rc::new(array))
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0.text
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Key {}

/// The depth of a container around one of `depth`.
fn deeper(depth: Option<u32>) -> u32 {
    let depth = depth.unwrap_or(0) + 1;
    if depth > DEPTH_MAX {
        stop(Stop::Nesting);
    }
    depth
}
