// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package kit is the format of a guest kit on disk: what a machine boots from.
//
// A kit is a directory, built by hack/guestkit and never changed afterwards:
//
//	kernel           kernel image: bzImage on amd64, uncompressed Image on arm64
//	initramfs.cpio   the agent and the kernel modules it loads
//	scratch.ext4     sparse, empty ext4 file system: the first content of a scratch disk
//	kit.json         the [Manifest], written last
//
// The digest of a kit is part of every snapshot's key, so the same inputs give the
// same bytes. Nothing in a kit is trusted until [Load] or [Verify] has checked it.
package kit
