// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package image turns OCI images into read-only disks and keeps them.
//
// A [Store] pulls an image from its registry, flattens its layers, and writes
// them into one ext4 disk image of a fixed, sparse size that a machine's image
// slot can hold (docs/architecture.md). Disks are content-addressed by the digest of
// the image's manifest for the guest's architecture, never change once
// published, and need no root to make, on Linux and on macOS.
//
// # On disk
//
//	<dir>/<hex>/disk.ext4    the disk, exactly Options.SlotBytes long, sparse
//	<dir>/<hex>/disk.img     the disk of a macOS installation, and beside it auxiliary.img
//	<dir>/<hex>/image.json   what it is; written last, so its presence means complete
//	<dir>/refs/<hex>.json    what a reference was resolved to the last time
//	<dir>/.tmp-*             a pull under way; removed at Open when its owner is gone
//	<dir>/.trash-*           an image on its way out
//	<dir>/.lock              held for moments, while directories appear and vanish
//
// An installation of macOS is an OCI artifact of types of our own ([TypeMacOS]): the raw
// disk in compressed parts, the auxiliary storage, hardware model and machine identifier.
// [PushMacOS] makes one; it is pulled, kept and collected as images are.
//
// Several processes may share a directory: a pull holds a lock on its temporary
// directory, a pinned image holds a shared lock on its image.json.
//
// # What an image may contain
//
// Everything that comes from a registry is hostile until it was checked: each
// blob against its digest and size, manifests, configurations, layers, entries,
// names and the unpacked size against [Limits]. Names are confined to the image's
// own root; one that climbs out of it makes the image ErrCorrupt. Symbolic links
// are kept as they are, they are only ever followed inside the guest. Device
// nodes and FIFOs are kept as container runtimes keep them (the device cgroup
// decides who may open them), except the character device 0:0, which overlayfs
// would take for a whiteout. Of the extended attributes user.*,
// security.capability and POSIX ACLs are kept; others, overlayfs' own among them,
// are dropped. A directory lost+found in the root is added by the file system.
package image
