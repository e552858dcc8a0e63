//! Bootstrap tokens: what lets an agent in without a person at hand. Only their hashes are known here.

use event_schema::{Event, RefusalReason, Timestamp, TokenCreated, TokenId, TokenRevoked};
use subtle::ConstantTimeEq as _;

use serde::{Deserialize, Serialize};

use crate::limits::{TOKEN_USES_MAX, TOKENS_MAX};
use crate::{Rejection, State, text};

/// A token as decisions see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) hash: [u8; 32],
    pub(crate) tags: Vec<(String, String)>,
    pub(crate) uses: u32,
    pub(crate) used: u32,
    pub(crate) expires: Timestamp,
    pub(crate) revoked: bool,
}

impl Token {
    pub(crate) fn created(e: &TokenCreated) -> Self {
        Self { hash: e.hash, tags: e.tags.clone(), uses: e.uses, used: 0, expires: e.expires, revoked: false }
    }

    fn is_live(&self, now: Timestamp) -> bool {
        !self.revoked && self.used < self.uses && now <= self.expires
    }
}

/// What can be asked about tokens.
#[derive(Clone, Debug)]
pub enum Command {
    /// Make a token.
    Create {
        /// Its id.
        token: TokenId,
        /// SHA-256 of its text.
        hash: [u8; 32],
        /// Tags for the agents that use it; `AGENT_NAME` names them.
        tags: Vec<(String, String)>,
        /// How many agents may use it, at least 1.
        uses: u32,
        /// Until when.
        expires: Timestamp,
    },
    /// Make it worthless.
    Revoke {
        /// Which.
        token: TokenId,
    },
}

/// Decides about a token.
///
/// # Errors
/// If the token is unknown, or its uses, tags or time make no sense, or there are too many.
pub fn decide(state: &State, command: Command, now: Timestamp) -> Result<Vec<Event>, Rejection> {
    match command {
        Command::Create { token, hash, tags, uses, expires } => {
            if state.tokens.contains_key(&token) {
                return Ok(vec![]);
            }
            if !(1..=TOKEN_USES_MAX).contains(&uses) {
                return Err(Rejection::Invalid(format!("a token has 1 to {TOKEN_USES_MAX} uses")));
            }
            if expires <= now {
                return Err(Rejection::Invalid("the token would be expired from the start".into()));
            }
            if state.tokens.values().filter(|token| token.is_live(now)).count() >= TOKENS_MAX {
                return Err(Rejection::Limit(format!("there are {TOKENS_MAX} tokens already: revoke some")));
            }
            let tags = text::tags(tags)?;
            Ok(vec![TokenCreated { token, hash, tags, uses, expires }.into()])
        }
        Command::Revoke { token } => match state.tokens.get(&token) {
            None => Err(Rejection::unknown("token", token)),
            Some(known) if known.revoked => Ok(vec![]),
            Some(_) => Ok(vec![TokenRevoked { token }.into()]),
        },
    }
}

/// Whether the token that was shown lets its bearer in at `now`.
pub(crate) fn check<'a>(
    state: &'a State,
    id: TokenId,
    hash: &[u8; 32],
    now: Timestamp,
) -> Result<&'a Token, RefusalReason> {
    let token = state.tokens.get(&id).ok_or(RefusalReason::UnknownToken)?;
    // Constant time: how much of the hash is right stays hidden.
    if !bool::from(token.hash.ct_eq(hash)) {
        Err(RefusalReason::UnknownToken)
    } else if token.revoked || now > token.expires {
        Err(RefusalReason::TokenExpired)
    } else if token.used >= token.uses {
        Err(RefusalReason::TokenSpent)
    } else {
        Ok(token)
    }
}
