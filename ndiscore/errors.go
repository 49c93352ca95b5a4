package ndiscore

import "errors"

// Statuses of the contract as errors; nil is NDIS_STATUS_SUCCESS. Compare with
// errors.Is: the core wraps them with who, doing what and why.
var (
	ErrFailure            = errors.New("operation failed")                            // NDIS_STATUS_FAILURE
	ErrResources          = errors.New("out of resources")                            // NDIS_STATUS_RESOURCES
	ErrBadVersion         = errors.New("contract version not supported")              // NDIS_STATUS_BAD_VERSION
	ErrBadCharacteristics = errors.New("a required entry is missing")                 // NDIS_STATUS_BAD_CHARACTERISTICS
	ErrNotAccepted        = errors.New("not accepted: the device is gone or refused") // NDIS_STATUS_NOT_ACCEPTED
	ErrNotSupported       = errors.New("not supported")                               // NDIS_STATUS_NOT_SUPPORTED
	ErrInvalidOID         = errors.New("unknown OID")                                 // NDIS_STATUS_INVALID_OID
	ErrBufferTooShort     = errors.New("buffer too short")                            // NDIS_STATUS_BUFFER_TOO_SHORT
	ErrInvalidLength      = errors.New("invalid length")                              // NDIS_STATUS_INVALID_LENGTH
	ErrInvalidData        = errors.New("invalid data")                                // NDIS_STATUS_INVALID_DATA
	ErrPaused             = errors.New("adapter is paused")                           // NDIS_STATUS_PAUSED
	ErrResetInProgress    = errors.New("reset in progress")                           // NDIS_STATUS_RESET_IN_PROGRESS
	ErrSoftErrors         = errors.New("reset worked, with errors")                   // NDIS_STATUS_SOFT_ERRORS
	ErrHardErrors         = errors.New("reset did not work")                          // NDIS_STATUS_HARD_ERRORS
	ErrLowPower           = errors.New("adapter is suspended")                        // NDIS_STATUS_LOW_POWER_STATE
	ErrRequestAborted     = errors.New("request was given up")                        // NDIS_STATUS_REQUEST_ABORTED
	ErrMulticastFull      = errors.New("multicast list does not fit")                 // NDIS_STATUS_MULTICAST_FULL
	ErrAdapterNotFound    = errors.New("no such adapter")                             // NDIS_STATUS_ADAPTER_NOT_FOUND
	ErrInvalidState       = errors.New("not allowed in this state")                   // ours
	ErrInvalidHandle      = errors.New("handle is no longer valid")                   // ours
	ErrExists             = errors.New("name is already in use")                      // ours
	ErrNotFound           = errors.New("not found")                                   // ours
	ErrDeviceAbsent       = errors.New("device does not exist")                       // ours: may come later
	ErrQuarantined        = errors.New("a call did not return; adapter quarantined")  // ours
	ErrStopped            = errors.New("core is not running")                         // ours
)
