// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package durable keeps what must outlive the process on disk: small versioned records,
// each written before the act that it announces and removed after its undoing.
//
// A record is one JSON object whose Header names its kind and its version. Write puts it
// in the place of the former one by way of a temporary file, a sync, a rename and a sync
// of the directory: after a crash there is the old one or the new one. What is read is
// bounded and may be hostile. The errors of a read tell apart what must not be confused:
//
//   - fs.ErrNotExist: there is none;
//   - ErrCorrupt: something is there, and it is no record of this kind;
//   - ErrNewer, ErrOlder: it is whole, and another vk-firkin wrote it;
//   - anything else: the disk did not say. That is not "there is none".
//
// Nothing in this package deletes or replaces a record that it could not read: see Store.
//
// All changes go through FS, so that a test can let the disk fail, fill up, stall, or the
// host crash at any one of them (package durabletest). LockDir keeps a second process
// away from a directory.
package durable
