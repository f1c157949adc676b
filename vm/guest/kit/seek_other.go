// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package kit

// seekData is lseek(2)'s SEEK_DATA on macOS and FreeBSD's number elsewhere; a system
// that does not know it answers with an error, and then everything is read.
const seekData = 4
