// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/vk-firkin/vk-firkin/vm/durable"
)

// The kinds of errors, told apart with errors.Is. An error of a caller's own
// context is none of them: it is that context's error.
var (
	// ErrInvalidReference: the reference cannot name an image.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrNotFound: the registry has no such image, or a blob of it is missing.
	ErrNotFound = errors.New("image not found")
	// ErrUnauthorized: the registry refused the credentials, or wants some.
	ErrUnauthorized = errors.New("registry refused access; check the pull secret")
	// ErrUnavailable: the registry could not be reached, hangs or is failing. Try
	// again later.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrPlatform: there is no such image for linux and the guest's architecture.
	ErrPlatform = errors.New("image is for another platform")
	// ErrCorrupt: what the registry sent does not match its digest, cannot be
	// decoded, or exceeds a limit.
	ErrCorrupt = errors.New("image is corrupt")
	// ErrWrongKind: a container image where a macOS installation was asked for, or the other
	// way round.
	ErrWrongKind = errors.New("image is of the wrong kind")
	// ErrNoSpace: the cache's file system has no room for the image.
	ErrNoSpace = errors.New("no space left for images")
	// ErrNeverPull: the policy is Never and the image is not here.
	ErrNeverPull = errors.New("image is not present and the pull policy is Never")
	// ErrInvalidOptions: Open was given options that make no sense.
	ErrInvalidOptions = errors.New("invalid image store options")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("image store is closed")
)

// kinds lists what an error may already be, so that it gets no second kind.
func kinds() []error {
	return []error{ErrInvalidReference, ErrNotFound, ErrUnauthorized, ErrUnavailable, ErrPlatform, ErrCorrupt, ErrWrongKind, ErrNoSpace, ErrNeverPull, ErrInvalidOptions, ErrClosed}
}

func hasKind(err error) bool {
	for _, k := range kinds() {
		if errors.Is(err, k) {
			return true
		}
	}
	return false
}

func isNoSpace(err error) bool {
	return durable.IsNoSpace(err)
}

// remoteError gives an error of the conversation with a registry its kind.
func remoteError(ctx context.Context, err error) error {
	if err == nil || hasKind(err) {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if isNoSpace(err) {
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	var local localFault
	if errors.As(err, &local) {
		return err
	}
	var te *transport.Error
	if errors.As(err, &te) {
		switch te.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return fmt.Errorf("%w: %w", ErrUnauthorized, err)
		case http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// localError gives an error of the local file system its kind, if it has one.
func localError(ctx context.Context, err error) error {
	switch {
	case err == nil || hasKind(err):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case isNoSpace(err):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	default:
		return err
	}
}

// corrupt makes an ErrCorrupt.
func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}
