//! To come.
use crate::{Result, lab::Lab};
pub(crate) fn rate_limit(_: &Lab) -> Result<()> {
    Err("to come".into())
}
