//! castor-blobs
