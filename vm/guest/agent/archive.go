// Copyright The vk-firkin Authors
// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"

	"connectrpc.com/connect"

	"github.com/vk-firkin/vk-firkin/vm/guest/agentv1"
)

// PutArchive implements agentv1connect.VolumeServiceHandler.
func (vs *volumes) PutArchive(context.Context, *connect.ClientStream[agentv1.PutArchiveRequest]) (*connect.Response[agentv1.PutArchiveResponse], error) {
	return nil, connect.NewError(connect.CodeUnimplemented, errors.New("archive: not there yet"))
}
