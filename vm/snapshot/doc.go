// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package snapshot makes, keeps and restores snapshots: saved machines that new
// machines start from.
//
// # Words
//
//   - spec: what a snapshot is to be made of. See [Spec].
//   - key: a digest over everything that must be equal at restore. See [Key].
//   - set: one published snapshot on disk, a directory named by its key: manifest,
//     seal key and the files of the driver. Immutable, and handled only as a whole.
//   - instance: one making of a set, named by a random number. A set that was
//     quarantined and built again has the same key and another instance.
//   - pin: this process uses the set. See [Ref].
//   - reference: a machine was restored from the set and may still need its files.
//     References are on disk, since machines outlive this process.
//
// # Layout of the store
//
//	<dir>/.lock                        held by the process that may change the store
//	<dir>/<key>/manifest.json          written last
//	<dir>/<key>/seal.key               32 bytes, mode 0600
//	<dir>/<key>/machine/...            what the driver saved
//	<dir>/.refs/<key>/<machine id>     references; the directory's time is the last use
//	<dir>/.building-<random>/          a set being built by the machine build-<random>
//	<dir>/.removing-<random>/          a set being deleted
//	<dir>/.quarantine/<key>-<time>/    a set that could not be restored, with reason.json
//
// A set is published by rename, after every file and the directory were synced, so
// that under a key there is a complete set or none. What a crash leaves in
// .building and .removing is deleted when the store is opened.
package snapshot
