//! castor-fsutil
