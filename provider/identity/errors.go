// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"errors"
	"fmt"
)

// Kinds of refusals, for errors.Is. Their messages name the cause and what to do.
var (
	// ErrNotJoined: there are no credentials.
	ErrNotJoined = errors.New("this host has not joined a cluster")
	// ErrExpired: the node's certificate was not renewed in time.
	ErrExpired = errors.New("the node's certificate has expired")
	// ErrDamaged: what is kept cannot be used.
	ErrDamaged = errors.New("the node's credentials are damaged")
	// ErrToken: the cluster does not know the token, or not any more.
	ErrToken = errors.New("the cluster does not accept the token")
	// ErrAuthority: the cluster's authority is not the one that was expected.
	ErrAuthority = errors.New("the cluster's authority is not the expected one")
	// ErrNoClusterInfo: the cluster does not tell strangers where it is.
	ErrNoClusterInfo = errors.New("the cluster publishes no cluster-info")
	// ErrForbidden: the token is known, and may not ask for a certificate.
	ErrForbidden = errors.New("the cluster does not let the token ask for a certificate")
	// ErrDenied: the request for a certificate was refused.
	ErrDenied = errors.New("the request for a certificate was denied")
	// ErrNotApproved: nobody has decided about the request in time.
	ErrNotApproved = errors.New("the request for a certificate was not approved in time")
)

// remedy says what to do about an error.
func remedy(kind error, format string, args ...any) error {
	return fmt.Errorf("%w: %w", kind, fmt.Errorf(format, args...))
}

// newToken is how to come by a token that works.
const newToken = "make a new one (helm upgrade of the chart prints the join command with it; in a cluster of kubeadm's: kubeadm token create --print-join-command)"
