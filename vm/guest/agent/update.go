// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// UpdateContainer implements agentv1connect.ContainerServiceHandler.
func (cs *containers) UpdateContainer(context.Context, *connect.Request[agentv1.UpdateContainerRequest]) (*connect.Response[agentv1.UpdateContainerResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("update: not there yet"))
}
