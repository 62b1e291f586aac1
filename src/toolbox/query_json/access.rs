//! Reaching into values and changing parts of them: what the interpreter and its library ask of a value type.

use std::rc::Rc;

use jaq_core::{Exn, ValT, ValX, box_iter::box_once, path::Opt, val::Range};

use super::{
    json,
    meter::tick,
    value::{Error, Items, Members, Text, Val, ValR},
};

impl Val {
    /// The part at `index`; `None` where there is none.
    pub(super) fn part(self, index: &Self) -> Result<Option<Self>, Error> {
        tick();
        Ok(match (self, index) {
            (null @ Self::Null(_), Self::Str(_) | Self::Int(_) | Self::Float(_) | Self::Null(_)) => {
                null.hop()?;
                None
            }
            (value @ (Self::Arr(_) | Self::Str(_) | Self::Null(_)), Self::Obj(bounds)) => {
                return value.range(bounds.get("start")..bounds.get("end")).map(Some);
            }
            (Self::Obj(members), Self::Str(name)) => members.get(&name.text).cloned(),
            (Self::Arr(array), Self::Int(_) | Self::Float(_)) => {
                position(index, array.items.len()).map(|at| array.items[at].clone())
            }
            (Self::Arr(array), Self::Arr(_)) => Some(Self::Arr(array).indices(index)?),
            (value, index) => return Err(Error::index(value, index.clone())),
        })
    }

    /// Where `wanted` stands in this array or text.
    pub(super) fn indices(&self, wanted: &Self) -> ValR {
        let at = |at: usize| Self::from(at);
        Ok(match (self, wanted) {
            (Self::Null(_), _) => Self::NULL,
            (Self::Str(_), Self::Str(wanted)) if wanted.text.is_empty() => Self::NULL,
            (Self::Arr(_), Self::Arr(wanted)) if wanted.items.is_empty() => Self::NULL,
            (Self::Str(text), Self::Str(wanted)) => {
                let starts = text.text.char_indices().enumerate();
                starts
                    .filter(|(_, (byte, _))| text.text[*byte..].starts_with(&wanted.text))
                    .map(|(n, _)| at(n))
                    .collect()
            }
            (Self::Arr(array), Self::Arr(wanted)) => {
                let runs = array.items.windows(wanted.items.len()).enumerate();
                runs.filter(|(_, run)| *run == wanted.items).map(|(n, _)| at(n)).collect()
            }
            (Self::Arr(array), item) => {
                array.items.iter().enumerate().filter(|(_, other)| *other == item).map(|(n, _)| at(n)).collect()
            }
            (value, wanted) => return Err(Error::index(value.clone(), wanted.clone())),
        })
    }

    fn as_whole(&self) -> Option<i64> {
        #[allow(clippy::cast_possible_truncation)] // it saturates
        match self {
            Self::Int(number) => Some(*number),
            Self::Float(number) if number.is_finite() => Some(number.floor() as i64),
            _ => None,
        }
    }
}

impl Default for Val {
    fn default() -> Self {
        Self::NULL
    }
}

impl From<bool> for Val {
    fn from(flag: bool) -> Self {
        Self::Bool(flag)
    }
}

impl From<isize> for Val {
    fn from(number: isize) -> Self {
        Self::Int(number as i64)
    }
}

impl From<usize> for Val {
    fn from(number: usize) -> Self {
        i64::try_from(number).map_or(Self::Float(f64::MAX), Self::Int)
    }
}

impl From<f64> for Val {
    fn from(number: f64) -> Self {
        Self::Float(number)
    }
}

impl From<String> for Val {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

impl From<Range<Self>> for Val {
    fn from(range: Range<Self>) -> Self {
        let bounds = [("start", range.start), ("end", range.end)];
        let named = bounds.into_iter().filter_map(|(name, bound)| Some((Rc::new(Text::new(name.into(), 0)), bound?)));
        Self::object(named.collect())
    }
}

impl ValT for Val {
    fn from_num(number: &str) -> ValR {
        if let Ok(number) = number.parse() {
            return Ok(Self::Int(number));
        }
        number.parse().map(Self::Float).map_err(|_| Error::str(format_args!("{number:?} is not a number")))
    }

    fn from_map<I: IntoIterator<Item = (Self, Self)>>(members: I) -> ValR {
        let named = members.into_iter().map(|(name, value)| match name {
            Self::Str(name) => Ok((name, value)),
            other => Err(Error::typ(other, "object key")),
        });
        named.collect::<Result<Members, _>>().map(Self::object)
    }

    fn key_values(self) -> Box<dyn Iterator<Item = Result<(Self, Self), Error>>> {
        match self {
            Self::Arr(array) => {
                let (items, charge) = Items::take(array);
                Box::new(items.into_iter().enumerate().map(move |(at, item)| {
                    let _held = &charge;
                    Ok((Self::from(at), item))
                }))
            }
            Self::Obj(members) => {
                let (members, charge) = Members::take(members);
                Box::new(members.into_iter().map(move |(name, value)| {
                    let _held = &charge;
                    Ok((Self::Str(name), value))
                }))
            }
            other => box_once(Err(not_iterable(other))),
        }
    }

    fn values(self) -> Box<dyn Iterator<Item = ValR>> {
        match self {
            Self::Arr(_) | Self::Obj(_) => Box::new(self.key_values().map(|part| part.map(|(_, value)| value))),
            other => box_once(Err(not_iterable(other))),
        }
    }

    fn index(self, index: &Self) -> ValR {
        let hops = self.hops();
        Ok(self.part(index)?.unwrap_or(Self::Null(hops + 1)))
    }

    fn range(self, range: Range<&Self>) -> ValR {
        tick();
        let hops = self.hop()?;
        match self {
            Self::Null(_) => Ok(Self::Null(hops)),
            Self::Arr(array) => {
                let (from, to) = bounds(range, array.items.len())?;
                let _room = super::meter::Charge::new((to - from) * size_of::<Self>());
                Ok(Self::Arr(Rc::new(Items::new(array.items[from..to].to_vec(), hops))))
            }
            Self::Str(text) => {
                let (from, to) = bounds(range, text.text.chars().count())?;
                let part: String = text.text.chars().skip(from).take(to - from).collect();
                Ok(Self::Str(Rc::new(Text::new(part, hops))))
            }
            other => Err(Error::typ(other, "array or string")),
        }
    }

    fn map_values<'a, I: Iterator<Item = ValX<'a, Self>>>(self, opt: Opt, f: impl Fn(Self) -> I) -> ValX<'a, Self> {
        match self {
            Self::Arr(array) => {
                let (items, _charge) = Items::take(array);
                items.into_iter().flat_map(f).collect()
            }
            Self::Obj(members) => {
                let (members, _charge) = Members::take(members);
                let kept =
                    members.into_iter().filter_map(|(name, value)| f(value).next().map(|value| Ok((name, value?))));
                Ok(Self::object(kept.collect::<Result<_, Exn<'a, Self>>>()?))
            }
            other => opt.fail(other, |other| not_iterable(other).into()),
        }
    }

    fn map_index<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        index: &Self,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        tick();
        match (self, index) {
            (value @ (Self::Arr(_) | Self::Str(_)), Self::Obj(bounds)) => {
                value.map_range(bounds.get("start")..bounds.get("end"), opt, f)
            }
            (Self::Null(_), Self::Str(_)) => Self::object(Members::default()).map_index(index, opt, f),
            (Self::Null(_), Self::Int(_)) => Self::array(Vec::new()).map_index(index, opt, f),
            (Self::Obj(mut members), Self::Str(name)) => {
                let own = Members::own(&mut members);
                let old = own.get_mut(&name.text).map(std::mem::take);
                match f(old.unwrap_or_default()).next().transpose()? {
                    Some(new) => own.insert(Rc::clone(name), new),
                    None => own.remove(&name.text),
                }
                Ok(Self::Obj(members))
            }
            (Self::Arr(mut array), Self::Int(_) | Self::Float(_)) => {
                let len = array.items.len();
                let at = position(index, usize::MAX)
                    .filter(|_| index.as_whole() >= Some(0))
                    .or_else(|| position(index, len));
                let Some(at) = at else {
                    let fault =
                        |_| Error::str(format_args!("index {index} is before the beginning of the array")).into();
                    return opt.fail(Self::Arr(array), fault);
                };
                let own = Items::own(&mut array);
                let old = own.items.get_mut(at).map(std::mem::take);
                match (f(old.unwrap_or_default()).next().transpose()?, at < len) {
                    (Some(new), true) => {
                        own.deepen(&new);
                        own.items[at] = new;
                    }
                    (Some(new), false) => {
                        own.reserve((at - len).saturating_add(1));
                        own.items.resize(at, Self::NULL);
                        own.push(new);
                    }
                    (None, true) => drop(own.items.remove(at)),
                    (None, false) => {}
                }
                Ok(Self::Arr(array))
            }
            (value, index) => opt.fail(value, |value| Error::index(value, index.clone()).into()),
        }
    }

    fn map_range<'a, I: Iterator<Item = ValX<'a, Self>>>(
        self,
        range: Range<&Self>,
        opt: Opt,
        f: impl Fn(Self) -> I,
    ) -> ValX<'a, Self> {
        let mut array = match self {
            Self::Arr(array) => array,
            Self::Null(_) => Rc::default(),
            other => return opt.fail(other, |other| Error::typ(other, "array").into()),
        };
        let (from, to) = bounds(range, array.items.len())?;
        let part = Self::array(array.items[from..to].to_vec());
        let new = match f(part).next().transpose()? {
            None => Vec::new(),
            Some(Self::Arr(new)) => Items::take(new).0,
            Some(other) => return Err(Error::typ(other, "array").into()),
        };
        let own = Items::own(&mut array);
        own.reserve(new.len());
        new.iter().for_each(|item| own.deepen(item));
        own.items.splice(from..to, new);
        Ok(Self::Arr(array))
    }

    fn as_bool(&self) -> bool {
        !matches!(self, Self::Null(_) | Self::Bool(false))
    }

    fn into_string(self) -> Self {
        if matches!(self, Self::Str(_)) { self } else { json::to_text(&self) }
    }
}

impl jaq_std::ValT for Val {
    fn into_seq<S: FromIterator<Self>>(self) -> Result<S, Self> {
        match self {
            Self::Arr(array) => Ok(Items::take(array).0.into_iter().inspect(|_| tick()).collect()),
            other => Err(other),
        }
    }

    fn is_int(&self) -> bool {
        matches!(self, Self::Int(_))
    }

    fn as_isize(&self) -> Option<isize> {
        match self {
            Self::Int(number) => isize::try_from(*number).ok(),
            _ => None,
        }
    }

    fn as_f64(&self) -> Option<f64> {
        self.number()
    }

    fn is_utf8_str(&self) -> bool {
        matches!(self, Self::Str(_))
    }

    fn as_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Str(text) => Some(text.text.as_bytes()),
            _ => None,
        }
    }

    fn as_sub_str(&self, part: &[u8]) -> Self {
        Self::text(String::from_utf8_lossy(part))
    }

    fn from_utf8_bytes(bytes: impl AsRef<[u8]> + Send + 'static) -> Self {
        Self::text(String::from_utf8_lossy(bytes.as_ref()))
    }
}

fn not_iterable(value: Val) -> Error {
    Error::typ(value, "iterable (array or object)")
}

/// Which item a number means, counted from the end when it is negative; `None` outside.
fn position(index: &Val, len: usize) -> Option<usize> {
    let index = index.as_whole()?;
    let at = match usize::try_from(index) {
        Ok(at) => at,
        Err(_) => len.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)?,
    };
    (at < len).then_some(at)
}

/// The bounds of a slice, cut to what there is. A fraction counts for a whole item at both ends.
fn bounds(range: Range<&Val>, len: usize) -> Result<(usize, usize), Error> {
    let bound = |bound: Option<&Val>, absent: usize, round: fn(f64) -> f64| match bound {
        None | Some(Val::Null(_)) => Ok(absent),
        Some(value) => {
            let Some(number) = value.number().filter(|number| !number.is_nan()) else {
                return Err(Error::typ(value.clone(), "number"));
            };
            #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // saturates
            let at = round(if number < 0.0 { number + len as f64 } else { number }).max(0.0) as usize;
            Ok(at.min(len))
        }
    };
    let from = bound(range.start, 0, f64::floor)?;
    let to = bound(range.end, len, f64::ceil)?;
    Ok((from, to.max(from)))
}
