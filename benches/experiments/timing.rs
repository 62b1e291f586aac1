//! To come.
use crate::{Result, lab::Lab};
pub(crate) fn timing(_: &Lab) -> Result<()> {
    Err("to come".into())
}
