// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// AttachContainer implements agentv1connect.ContainerServiceHandler.
func (cs *containers) AttachContainer(context.Context, *connect.BidiStream[agentv1.AttachContainerRequest, agentv1.AttachContainerResponse]) error {
	return connect.NewError(connect.CodeUnimplemented, errors.New("attach: not there yet"))
}
