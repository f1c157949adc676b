// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package provider

import (
	"errors"

	"github.com/virtual-kubelet/virtual-kubelet/errdefs"
)

// Kinds of errors.
var (
	// ErrNotFound: the node has no such pod or container.
	ErrNotFound = errors.New("not found")
	// ErrImageInvalidName: the reference cannot be parsed; trying again will not help.
	ErrImageInvalidName = errors.New("invalid image name")
	// ErrImageNeverPull: the image is not on the node and the policy forbids a pull.
	ErrImageNeverPull = errors.New("image is not present and the pull policy is Never")
)

// edge turns an error into what virtual-kubelet understands. It is to be called
// once, outermost: virtual-kubelet's kinds are invisible through %w, and hide their
// cause from errors.Is.
func edge(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrNotFound):
		return errdefs.AsNotFound(err)
	default:
		return err
	}
}
