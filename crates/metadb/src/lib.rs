//! castor-metadb
