//! Who serves what is not read from files alone: started when first wanted, and anew when it has ended.

use std::sync::Arc;

use castor_task::Scope;
use parking_lot::Mutex;
use tokio::runtime::Handle;

use crate::serve::{DataServer, ServedLayers};
use crate::treefs::{ServerProgram, Tree, TreeServer};

/// The servers of an engine.
pub(crate) struct Serving {
    /// The layers that they serve.
    pub layers: Arc<ServedLayers>,
    scope: Scope,
    runtime: Handle,
    program: Option<ServerProgram>,
    data: Mutex<Option<Arc<DataServer>>>,
    trees: Mutex<Option<Arc<TreeServer>>>,
}

impl Serving {
    /// Nothing runs yet. Fetches run in `scope` on `runtime`.
    pub(crate) fn new(program: Option<ServerProgram>, scope: Scope, runtime: Handle) -> Self {
        let (layers, data, trees) = Default::default();
        Self { layers, scope, runtime, program, data, trees }
    }

    /// The file system of data files. Blocks.
    pub(crate) fn data(&self) -> Result<Arc<DataServer>, String> {
        let mut slot = self.data.lock();
        if let Some(server) = &*slot {
            if server.is_alive() {
                return Ok(server.clone());
            }
            tracing::warn!("the layers' file system was ended from outside: what reads through it gets errors");
        }
        let server = Arc::new(DataServer::start(self.layers.clone(), &self.scope, &self.runtime)?);
        *slot = Some(server.clone());
        Ok(server)
    }

    /// The process that serves trees. Blocks.
    pub(crate) fn trees(&self) -> Result<Arc<TreeServer>, String> {
        let mut slot = self.trees.lock();
        if let Some(server) = slot.as_ref().filter(|server| server.is_alive()) {
            return Ok(server.clone());
        }
        let Some(program) = &self.program else { return Err("no program is configured that could serve it".into()) };
        let server = Arc::new(TreeServer::start(program, self.layers.clone(), &self.scope, &self.runtime)?);
        tracing::debug!(pid = server.pid(), "the server of image trees runs");
        *slot = Some(server.clone());
        Ok(server)
    }

    /// The process that serves trees, if one runs.
    pub(crate) fn tree_server(&self) -> Option<u32> {
        self.trees.lock().as_ref().filter(|server| server.is_alive()).map(|server| server.pid())
    }
}

/// A server that a mount depends on.
pub(crate) enum Dependence {
    /// None.
    Files,
    /// The data server.
    Data(Arc<DataServer>),
    /// The process that serves trees, which serves this one.
    Trees(Tree),
}

impl Dependence {
    /// Whether what depends on it can be read.
    pub(crate) fn is_alive(&self) -> bool {
        match self {
            Self::Files => true,
            Self::Data(server) => server.is_alive(),
            Self::Trees(tree) => tree.is_alive(),
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn privileged_a_data_server_that_was_ended_is_replaced() {
        use std::os::fd::AsRawFd as _;
        let scope = Scope::root("test");
        let serving = Arc::new(Serving::new(None, scope, Handle::current()));
        castor_task::blocking(move || {
            let server = serving.data().unwrap();
            assert!(Arc::ptr_eq(&server, &serving.data().unwrap()));
            // As an administrator would.
            let context = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
            fsconfig_create(&context).unwrap();
            let control = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
            let connection = rustix::fs::minor(rustix::fs::fstat(server.directory()).unwrap().st_dev);
            std::fs::write(format!("/proc/self/fd/{}/{connection}/abort", control.as_raw_fd()), "1").unwrap();
            let dependence = Dependence::Data(server.clone());
            while dependence.is_alive() {
                std::thread::yield_now();
            }
            let next = serving.data().unwrap();
            assert!(next.is_alive() && !Arc::ptr_eq(&server, &next));
        })
        .await;
    }
}
