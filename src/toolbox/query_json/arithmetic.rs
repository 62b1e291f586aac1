//! Operators on values and their order, as jq has them.

use std::{
    cmp::Ordering,
    collections::BTreeSet,
    ops::{Add, Div, Mul, Neg, Rem, Sub},
    rc::Rc,
};

use jaq_core::ops::Math;

use super::{
    meter::{Charge, Stop, stop, tick},
    value::{Error, Items, Members, Text, Val, ValR},
};

/// Both as integers where the result is one, else both as floating-point numbers.
fn numbers(l: &Val, r: &Val, int: fn(i64, i64) -> Option<i64>, float: fn(f64, f64) -> f64) -> Option<Val> {
    if let (Val::Int(l), Val::Int(r)) = (l, r)
        && let Some(result) = int(*l, *r)
    {
        return Some(Val::Int(result));
    }
    Some(Val::Float(float(l.number()?, r.number()?)))
}

impl Val {
    /// The value of a number.
    #[allow(clippy::cast_precision_loss)] // as JSON readers everywhere do it
    pub(super) fn number(&self) -> Option<f64> {
        match self {
            Self::Int(number) => Some(*number as f64),
            Self::Float(number) => Some(*number),
            _ => None,
        }
    }
}

impl Add for Val {
    type Output = ValR;

    fn add(self, other: Self) -> ValR {
        tick();
        if let Some(sum) = numbers(&self, &other, i64::checked_add, |l, r| l + r) {
            return Ok(sum);
        }
        match (self, other) {
            (Self::Null(_), value) | (value, Self::Null(_)) => Ok(value),
            (Self::Str(l), Self::Str(r)) => Ok(Self::Str(Text::append(l, &r.text))),
            (Self::Arr(mut l), Self::Arr(r)) => {
                Items::own(&mut l).extend(&r.items, &r);
                Ok(Self::Arr(l))
            }
            (Self::Obj(mut l), Self::Obj(r)) => {
                let own = Members::own(&mut l);
                r.iter().for_each(|(name, value)| own.insert(Rc::clone(name), value.clone()));
                Ok(Self::Obj(l))
            }
            (l, r) => Err(Error::math(l, Math::Add, r)),
        }
    }
}

impl Sub for Val {
    type Output = ValR;

    fn sub(self, other: Self) -> ValR {
        tick();
        if let Some(difference) = numbers(&self, &other, i64::checked_sub, |l, r| l - r) {
            return Ok(difference);
        }
        match (self, other) {
            (Self::Arr(l), Self::Arr(r)) => {
                let gone: BTreeSet<_> = r.items.iter().collect();
                Ok(l.items.iter().filter(|item| !gone.contains(item)).cloned().collect())
            }
            (l, r) => Err(Error::math(l, Math::Sub, r)),
        }
    }
}

impl Mul for Val {
    type Output = ValR;

    fn mul(self, other: Self) -> ValR {
        tick();
        if let Some(product) = numbers(&self, &other, i64::checked_mul, |l, r| l * r) {
            return Ok(product);
        }
        match (self, other) {
            (Self::Str(text), times @ (Self::Int(_) | Self::Float(_)))
            | (times @ (Self::Int(_) | Self::Float(_)), Self::Str(text)) => Ok(repeated(&text.text, &times)),
            (Self::Obj(l), Self::Obj(r)) => Ok(Self::Obj(merged(l, &r))),
            (l, r) => Err(Error::math(l, Math::Mul, r)),
        }
    }
}

fn repeated(text: &str, times: &Val) -> Val {
    let times = times.number().unwrap_or(0.0);
    if times <= 0.0 || times.is_nan() {
        return Val::NULL;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // it saturates, and is positive
    let times = times.max(1.0) as usize;
    let Some(bytes) = text.len().checked_mul(times) else { stop(Stop::Memory) };
    let _room = Charge::new(bytes); // asked for before it is taken
    Val::text(text.repeat(times))
}

fn merged(mut l: Rc<Members>, r: &Rc<Members>) -> Rc<Members> {
    let own = Members::own(&mut l);
    for (name, value) in r.iter() {
        tick();
        let value = match (own.get_mut(&name.text).map(std::mem::take), value) {
            (Some(Val::Obj(inner)), Val::Obj(value)) => Val::Obj(merged(inner, value)),
            _ => value.clone(),
        };
        own.insert(Rc::clone(name), value);
    }
    l
}

impl Div for Val {
    type Output = ValR;

    fn div(self, other: Self) -> ValR {
        tick();
        let exactly = |l: i64, r: i64| if r != 0 && l.checked_rem(r) == Some(0) { l.checked_div(r) } else { None };
        if let Some(quotient) = numbers(&self, &other, exactly, |l, r| l / r) {
            return Ok(quotient);
        }
        match (self, other) {
            (Self::Str(l), Self::Str(_)) if l.text.is_empty() => Ok(Self::array(Vec::new())),
            (Self::Str(l), Self::Str(r)) if r.text.is_empty() => Ok(l.text.chars().map(Self::text).collect()),
            (Self::Str(l), Self::Str(r)) => Ok(l.text.split(&r.text).map(Self::text).collect()),
            (l, r) => Err(Error::math(l, Math::Div, r)),
        }
    }
}

impl Rem for Val {
    type Output = ValR;

    fn rem(self, other: Self) -> ValR {
        tick();
        if matches!((&self, &other), (Self::Int(_) | Self::Float(_), Self::Int(0))) {
            return Err(Error::math(self, Math::Rem, other));
        }
        numbers(&self, &other, |l, r| Some(l.checked_rem(r).unwrap_or(0)), |l, r| l % r)
            .ok_or_else(|| Error::math(self, Math::Rem, other))
    }
}

impl Neg for Val {
    type Output = ValR;

    fn neg(self) -> ValR {
        tick();
        match self {
            Self::Int(number) => {
                Ok(number.checked_neg().map_or_else(|| Self::Float(9_223_372_036_854_775_808.0), Self::Int))
            }
            Self::Float(number) => Ok(Self::Float(-number)),
            other => Err(Error::typ(other, "number")),
        }
    }
}

impl Val {
    fn rank(&self) -> u8 {
        match self {
            Self::Null(_) => 0,
            Self::Bool(_) => 1,
            Self::Int(_) | Self::Float(_) => 2,
            Self::Str(_) => 3,
            Self::Arr(_) => 4,
            Self::Obj(_) => 5,
        }
    }
}

impl PartialEq for Val {
    fn eq(&self, other: &Self) -> bool {
        self.partial_cmp(other) == Some(Ordering::Equal)
    }
}

impl Eq for Val {}

// `nan < nan` is true in jq, and its definition of `isnan` rests on that; a sort needs an order.
#[allow(clippy::non_canonical_partial_ord_impl)]
impl PartialOrd for Val {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Float(l), Self::Float(r)) if l.is_nan() && r.is_nan() => Some(Ordering::Less),
            _ => Some(self.cmp(other)),
        }
    }
}

impl Ord for Val {
    /// Null, false, true, numbers, texts, arrays, objects; not-a-number before all numbers.
    fn cmp(&self, other: &Self) -> Ordering {
        tick();
        match (self, other) {
            (Self::Bool(l), Self::Bool(r)) => l.cmp(r),
            (Self::Int(l), Self::Int(r)) => l.cmp(r),
            (Self::Str(l), Self::Str(r)) => l.text.cmp(&r.text),
            (Self::Arr(l), Self::Arr(r)) if Rc::ptr_eq(l, r) => Ordering::Equal,
            (Self::Arr(l), Self::Arr(r)) => l.items.cmp(&r.items),
            (Self::Obj(l), Self::Obj(r)) if Rc::ptr_eq(l, r) => Ordering::Equal,
            (Self::Obj(l), Self::Obj(r)) => {
                let (l, r) = (l.sorted(), r.sorted());
                let names = l.iter().map(|(name, _)| name).cmp(r.iter().map(|(name, _)| name));
                names.then_with(|| l.iter().map(|(_, value)| value).cmp(r.iter().map(|(_, value)| value)))
            }
            (l, r) => match (l.number(), r.number()) {
                (Some(l), Some(r)) => l.partial_cmp(&r).unwrap_or_else(|| r.is_nan().cmp(&l.is_nan())),
                _ => l.rank().cmp(&r.rank()),
            },
        }
    }
}
