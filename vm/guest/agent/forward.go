// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// Forward implements agentv1connect.AgentServiceHandler.
func (s *machineService) Forward(context.Context, *connect.BidiStream[agentv1.ForwardRequest, agentv1.ForwardResponse]) error {
	return connect.NewError(connect.CodeUnimplemented, errors.New("forward: not there yet"))
}
