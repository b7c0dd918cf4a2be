//! castor-layerfs
