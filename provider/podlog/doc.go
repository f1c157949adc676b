// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

// Package podlog keeps the output of a pod's containers on the host, in the
// kubelet's place and format, so that it outlives the machine.
//
// A container writes into its guest, which keeps numbered records until they are
// acknowledged. A Collector pulls them into
//
//	<dir>/<pod UID>/logs/<container>/<attempt>.log
//
// one CRI log line for each record, rotated as the kubelet does. The log is the
// only account of how far the collector came: the number of a record is the number
// of its line, counted from the first line of the current file, whose number the
// position file beside it holds. So nothing has to be kept in step for each batch
// of lines, and a log that was cut anywhere by a crash says itself where to go on:
// every record is in it once.
//
// Records come from a guest and are hostile: they are bounded, must be numbered
// without gaps and are refused when they would break the format (ErrGuestOutput).
package podlog
