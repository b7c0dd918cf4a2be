//! The clients that wait for one piece of work.

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use crate::{Caller, SessionError, Sessions};

/// How long a session is waited for that is not there.
const WAIT: Duration = Duration::from_secs(5);

/// Sessions of which any may answer: those of all builds that share a vertex.
#[derive(Clone)]
pub struct Group {
    sessions: Sessions,
    ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>,
}

impl Group {
    pub(crate) fn new(sessions: Sessions, ids: Arc<dyn Fn() -> Vec<String> + Send + Sync>) -> Self {
        Self { sessions, ids }
    }

    /// The ids as they are now.
    pub fn ids(&self) -> Vec<String> {
        (self.ids)()
    }

    /// All sessions, of the group or not.
    pub fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    /// Whether any of the sessions is there.
    pub fn is_alive(&self) -> bool {
        self.ids().iter().any(|id| self.sessions.now(id).is_some())
    }

    /// Asks one session after the other until `ask` succeeds; the error that
    /// says most otherwise, of equals the last. Sessions that are there come
    /// first, the others are waited for.
    pub async fn any<T, F, A>(&self, mut ask: A) -> Result<T, SessionError>
    where
        A: FnMut(Caller) -> F,
        F: Future<Output = Result<T, SessionError>>,
    {
        let mut last = SessionError::NoneActive;
        let mut missing = Vec::new();
        for id in self.ids() {
            match self.sessions.now(&id) {
                Some(caller) => match ask(caller).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => last = worse(last, error),
                },
                None => missing.push(id),
            }
        }
        for id in missing {
            match self.sessions.get(&id, WAIT).await {
                Ok(caller) => match ask(caller).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) => last = worse(last, error),
                },
                Err(error) => last = worse(last, error),
            }
        }
        Err(last)
    }
}

/// The error that says more: what a client answered says more than that another
/// client is not there, and that one failed more than that another does not
/// have it.
fn worse(old: SessionError, new: SessionError) -> SessionError {
    let weight = |error: &SessionError| match error {
        SessionError::NoneActive => 0,
        SessionError::NotFound { .. } => 1,
        error if error.is_absent() => 2,
        _ => 3,
    };
    if weight(&new) >= weight(&old) { new } else { old }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Group").field(&self.ids()).finish()
    }
}
